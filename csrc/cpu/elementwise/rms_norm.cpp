// SPDX-License-Identifier: Apache-2.0
// out = x * weight / sqrt(mean(x^2) + eps), after residual += x if there is one.
//
// Bytes: reads x (and residual) once, writes out (and residual) once: 2 or 4 * size_of(dtype) per
// element; the second pass over a row hits L1. FLOPs: 4 per element. Memory-bound.
// One thread computes a row; its sum of squares is kept in kWidth f32 lanes for every dtype.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

template <class T, class W>
void rms_norm_row(const T* x, const W* weight, T* residual, T* out, int64_t size, float eps) {
  F32 squares;
  const T* source = x;
  if (residual != nullptr) {
    for_each_vector(size, [&](int64_t i, int n) {
      store_n(residual + i, load_n(x + i, n) + load_n(residual + i, n), n);
      const F32 sum = load_n(residual + i, n);  // as stored: rounded to T
      squares = fma(sum, sum, squares);
    });
    source = residual;
  } else {
    for_each_vector(size, [&](int64_t i, int n) {
      const F32 value = load_n(x + i, n);
      squares = fma(value, value, squares);
    });
  }
  const float mean = reduce_add(squares) / static_cast<float>(size);
  const F32 scale(1.0f / __builtin_sqrtf(mean + eps));
  for_each_vector(size, [&](int64_t i, int n) {
    store_n(out + i, load_n(source + i, n) * scale * load_n(weight + i, n), n);
  });
}

template <class T, class W>
void run(const RmsNormParams& p, const Team& team) {
  const Share rows = share_of(p.num_tokens, team);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    T* residual = p.residual == nullptr
                      ? nullptr
                      : static_cast<T*>(p.residual) + row * p.stride_residual_token;
    rms_norm_row(static_cast<const T*>(p.x) + row * p.stride_x_token,
                 static_cast<const W*>(p.weight), residual,
                 static_cast<T*>(p.out) + row * p.stride_out_token, p.hidden_size, p.eps);
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_dtype<float, BF16>(p.weight_dtype, [&]<class W>() { run<T, W>(p, team); });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
