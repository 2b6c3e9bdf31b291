// SPDX-License-Identifier: Apache-2.0
// out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, after residual += x if there is one.
//
// Three passes over a row, which stays in L1: sum, squares of the centred values (no cancellation,
// and a corrected mean), output. Bytes: as rms_norm. FLOPs: 7 per element. Memory-bound.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

template <class T, class W>
void layer_norm_row(const T* x, const W* weight, const W* bias, T* residual, T* out, int64_t size,
                    float eps) {
  const T* source = x;
  if (residual != nullptr) {
    for_each_vector(size, [&](int64_t i, int n) {
      store_n(residual + i, load_n(x + i, n) + load_n(residual + i, n), n);
    });
    source = residual;
  }
  F32 sum;
  for_each_vector(size, [&](int64_t i, int n) { sum = sum + load_n(source + i, n); });
  const float estimate = reduce_add(sum) / static_cast<float>(size);

  // The sum of the centred values corrects the estimate of the mean.
  F32 drifts, squares;
  for_each_vector(size, [&](int64_t i, int n) {
    F32 centred = load_n(source + i, n) - F32(estimate);
    if (n < F32::kWidth) centred = keep_n(centred, n);  // lanes past the end hold -estimate
    drifts = drifts + centred;
    squares = fma(centred, centred, squares);
  });
  const float drift = reduce_add(drifts) / static_cast<float>(size);
  const float variance = reduce_add(squares) / static_cast<float>(size) - drift * drift;
  const F32 scale(1.0f / __builtin_sqrtf(variance + eps));
  for_each_vector(size, [&](int64_t i, int n) {
    const F32 normed = (load_n(source + i, n) - F32(estimate) - F32(drift)) * scale;
    const F32 shift = bias != nullptr ? load_n(bias + i, n) : F32();
    store_n(out + i, fma(normed, load_n(weight + i, n), shift), n);
  });
}

template <class T, class W>
void run(const LayerNormParams& p, const Team& team) {
  const Share rows = share_of(p.num_tokens, team);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    T* residual = p.residual == nullptr
                      ? nullptr
                      : static_cast<T*>(p.residual) + row * p.stride_residual_token;
    layer_norm_row(static_cast<const T*>(p.x) + row * p.stride_x_token,
                   static_cast<const W*>(p.weight), static_cast<const W*>(p.bias), residual,
                   static_cast<T*>(p.out) + row * p.stride_out_token, p.hidden_size, p.eps);
  }
}

}  // namespace

void layer_norm(const LayerNormParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_dtype<float, BF16>(p.weight_dtype, [&]<class W>() { run<T, W>(p, team); });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
