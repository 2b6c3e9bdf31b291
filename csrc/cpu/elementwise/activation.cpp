// SPDX-License-Identifier: Apache-2.0
// out = act(gate) * up for the gated feed-forward (SwiGLU, GeGLU), or act(x) alone.
//   silu(x) = x / (1 + e^-x);  gelu(x) = x/2 (1 + erf(x / sqrt 2));
//   gelu_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
//   scale(x) = factor x;  soft_cap(x) = cap tanh(factor x), factor a part of 1 / cap
//   grow(x) = (1 + beta ln(1 + floor(position / length))) x
//
// Bytes: 3 (gated) or 2 values of dtype per output. FLOPs: about 20 per output, in f32; in f32
// memory-bound from L2 on.
#include <cmath>

#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/math.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// The factor of a row's elements, of those functions that have one.
template <Activation kActivation>
inline F32 row_factor(const ActivationParams& p, int64_t row) {
  if constexpr (kActivation == Activation::kGrow) {
    const int64_t position = p.positions[row] > 0 ? p.positions[row] : 0;
    return F32(1.0f + p.factor * logf(static_cast<float>(1 + position / p.length)));
  } else {
    return F32(p.factor);
  }
}

template <Activation kActivation>
inline F32 activate(const ActivationParams& p, F32 factor, F32 x) {
  if constexpr (kActivation == Activation::kSilu) {
    return x * sigmoid(x);
  } else if constexpr (kActivation == Activation::kGelu) {
    return F32(0.5f) * x * (F32(1.0f) + erf(x * F32(0.70710678f)));
  } else if constexpr (kActivation == Activation::kScale || kActivation == Activation::kGrow) {
    return factor * x;
  } else if constexpr (kActivation == Activation::kSoftCap) {
    return F32(p.soft_cap) * tanh(factor * x);
  } else {
    const F32 inner = fma(x * x * x, F32(0.044715f), x) * F32(0.79788456f);
    return F32(0.5f) * x * (F32(1.0f) + tanh(inner));
  }
}

template <class T, Activation kActivation>
void run(const ActivationParams& p, const Team& team) {
  // Threads divide elements, not rows: one row of decode then feeds several threads.
  const Share share = share_of(p.num_tokens * p.size, team, 64);
  for (int64_t at = share.begin; at < share.end;) {
    const int64_t row = at / p.size;
    const int64_t column = at % p.size;
    const int64_t count = p.size - column < share.end - at ? p.size - column : share.end - at;
    const T* x = static_cast<const T*>(p.x) + row * p.stride_x_token + column;
    T* out = static_cast<T*>(p.out) + row * p.stride_out_token + column;
    const F32 factor = row_factor<kActivation>(p, row);
    for_each_vector(count, [&](int64_t i, int n) {
      F32 value = activate<kActivation>(p, factor, load_n(x + i, n));
      if (p.gated) value = value * load_n(x + p.size + i, n);
      store_n(out + i, value, n);
    });
    at += count;
  }
}

}  // namespace

void activation(const ActivationParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    switch (p.activation) {
      case Activation::kSilu:
        return run<T, Activation::kSilu>(p, team);
      case Activation::kGelu:
        return run<T, Activation::kGelu>(p, team);
      case Activation::kGeluTanh:
        return run<T, Activation::kGeluTanh>(p, team);
      case Activation::kScale:
        return run<T, Activation::kScale>(p, team);
      case Activation::kSoftCap:
        return run<T, Activation::kSoftCap>(p, team);
      case Activation::kGrow:
        return run<T, Activation::kGrow>(p, team);
    }
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
