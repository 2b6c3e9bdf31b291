// SPDX-License-Identifier: Apache-2.0
// The end of a linear, alike for dense and packed weights: bias, gate, addition, rounding.
#pragma once

#include "common/dispatch.h"
#include "cpu/vec/math.h"
#include "params.h"

namespace lampo::cpu::LAMPO_ISA {

/// Rows of weight whose results make columns of out: with silu_mul the gate's, and as far again the
/// other half's.
static inline int64_t num_outputs(const LinearParams& p) {
  return p.silu_mul ? p.out_features / 2 : p.out_features;
}

static inline F32 add_bias(const LinearParams& p, int64_t row, int n, F32 value) {
  if (p.bias == nullptr) return value;
  dispatch_dtype<float, BF16>(p.bias_dtype, [&]<class B>() {
    value = value + load_n(static_cast<const B*>(p.bias) + row, n);
  });
  return value;
}

/// Writes out[token][row + i] for i in [0, n), n <= F32::kWidth, from the products of the rows
/// row + i and, with silu_mul, of the rows num_outputs + row + i.
template <class Out>
static inline void write_outputs(const LinearParams& p, int64_t token, int64_t row, int n,
                                 F32 value, F32 up) {
  value = add_bias(p, row, n, value);
  if (p.silu_mul) {
    value = value * sigmoid(value) * add_bias(p, num_outputs(p) + row, n, up);
  }
  Out* out = static_cast<Out*>(p.out) + token * p.stride_out_token + row;
  if (p.accumulate) value = value + load_n(out, n);
  if (n == F32::kWidth) {
    store(out, value);
  } else {
    store_n(out, value, n);
  }
}

}  // namespace lampo::cpu::LAMPO_ISA
