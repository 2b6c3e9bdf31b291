// SPDX-License-Identifier: Apache-2.0
// Epilogue of a linear, for dense and packed weights: bias, gate, residual addition, rounding.
#pragma once

#include "common/dispatch.h"
#include "cpu/vec/math.h"
#include "params.h"

namespace lampo::cpu::LAMPO_ISA {

/// Number of columns of out.
static inline int64_t num_outputs(const LinearParams& p) {
  return p.silu_mul ? p.out_features / 2 : p.out_features;
}

/// Row of weight for column `column` of out; with silu_mul the gate's row: the row of up lies one
/// strip further.
static inline int64_t weight_row(const LinearParams& p, int64_t column) {
  return p.silu_mul ? column + column / kStripRows * kStripRows : column;
}

static inline F32 add_bias(const LinearParams& p, int64_t row, int n, F32 value) {
  if (p.bias == nullptr) return value;
  dispatch_dtype<float, BF16>(p.bias_dtype, [&]<class B>() {
    value = value + load_n(static_cast<const B*>(p.bias) + row, n);
  });
  return value;
}

/// The gated activation: silu(gate) * up, or with a limit the clamped one.
static inline F32 gated(const LinearParams& p, F32 gate, F32 up) {
  if (p.swiglu_limit <= 0.0f) return gate * sigmoid(gate) * up;
  const F32 limit(p.swiglu_limit);
  // min and max keep a NaN that is their second operand.
  gate = min(limit, gate);
  up = max(-limit, min(limit, up));
  return (up + F32(1.0f)) * gate * sigmoid(F32(1.702f) * gate);
}

/// Writes out[token][column + i] for i in [0, n), n <= F32::kWidth. value: products with the rows
/// of weight_row(); up: with silu_mul, those with the rows of up.
template <class Out>
static inline void write_outputs(const LinearParams& p, int64_t token, int64_t column, int n,
                                 F32 value, F32 up) {
  const int64_t row = weight_row(p, column);
  value = add_bias(p, row, n, value);
  if (p.silu_mul) value = gated(p, value, add_bias(p, row + kStripRows, n, up));
  Out* out = static_cast<Out*>(p.out) + token * p.stride_out_token + column;
  if (p.accumulate) value = value + load_n(out, n);
  if (n == F32::kWidth) {
    store(out, value);
  } else {
    store_n(out, value, n);
  }
}

}  // namespace lampo::cpu::LAMPO_ISA
