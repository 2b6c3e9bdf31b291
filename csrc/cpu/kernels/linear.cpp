// SPDX-License-Identifier: Apache-2.0
// out[t][n] = sum_k x[t][k] w[n][k] + bias[n] on dense weights (f32, bf16, f16), row-major as
// stored.
//
// Lane l of an accumulator sums k = l, l + kWidth, ... in order; lanes are added in one fixed tree.
// That definition does not depend on the tiling, so neither does a token's result on its batch.
//
// Work: a thread owns a range of output rows and takes them kNr at a time against kMr tokens: kMr
// kNr accumulators in registers, each loaded vector of x and of w used kNr and kMr times. Weights
// are widened to f32 as they are loaded. Tokens come in blocks that stay in L2. Bytes: weights once
// per kTokenBlock tokens. FLOPs: 2 per weight and token, in f32. Below about 4 tokens bound by
// memory, above by f32 multiply-adds.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int kNr = 4;
constexpr int kMr =
    F32::kWidth == 16 ? 6 : 2;  // kMr * kNr accumulators: 24 of 32, 8 of 16 registers
constexpr int64_t kTokenBlock = 96;

template <class T, class W, int kRows, int kColumns>
inline void dot_tile(const T* x, int64_t stride_x, const W* w, int64_t stride_w, int64_t size,
                     float (&result)[kRows][kColumns]) {
  F32 acc[kRows][kColumns];
  const auto step = [&](int64_t k, auto&& read) {
    F32 wk[kColumns];
    for (int c = 0; c < kColumns; ++c) wk[c] = read(w + c * stride_w + k);
    for (int r = 0; r < kRows; ++r) {
      const F32 xk = read(x + r * stride_x + k);
      for (int c = 0; c < kColumns; ++c) acc[r][c] = fma(xk, wk[c], acc[r][c]);
    }
  };
  int64_t k = 0;
  for (; k + F32::kWidth <= size; k += F32::kWidth) {
    step(k, [](const auto* p) { return load(p); });
  }
  if (k < size) {
    const int n = static_cast<int>(size - k);
    step(k, [n](const auto* p) { return load_n(p, n); });
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) result[r][c] = reduce_add(acc[r][c]);
  }
}

template <class T, class W, class Out, int kRows, int kColumns>
void multiply_tile(const LinearParams& p, int64_t token, int64_t row) {
  float result[kRows][kColumns];
  dot_tile<T, W, kRows, kColumns>(static_cast<const T*>(p.x) + token * p.stride_x_token,
                                  p.stride_x_token,
                                  static_cast<const W*>(p.weight) + row * p.stride_weight_row,
                                  p.stride_weight_row, p.in_features, result);
  for (int r = 0; r < kRows; ++r) {
    Out* out = static_cast<Out*>(p.out) + (token + r) * p.stride_out_token + row;
    for (int c = 0; c < kColumns; ++c) {
      float value = result[r][c];
      if (p.bias != nullptr) {
        dispatch_dtype<float, BF16>(p.bias_dtype, [&]<class B>() {
          value += to_float(static_cast<const B*>(p.bias)[row + c]);
        });
      }
      out[c] = from_float<Out>(value);
    }
  }
}

template <class T, class W, class Out, int kColumns>
void multiply_tokens(const LinearParams& p, int64_t first, int64_t end, int64_t row) {
  int64_t token = first;
  for (; token + kMr <= end; token += kMr) multiply_tile<T, W, Out, kMr, kColumns>(p, token, row);
  for (; token < end; ++token) multiply_tile<T, W, Out, 1, kColumns>(p, token, row);
}

template <class T, class W, class Out>
void run(const LinearParams& p, const Team& team) {
  const Share rows = share_of(p.out_features, team, 16);
  for (int64_t first = 0; first < p.num_tokens; first += kTokenBlock) {
    const int64_t end = first + kTokenBlock < p.num_tokens ? first + kTokenBlock : p.num_tokens;
    int64_t row = rows.begin;
    for (; row + kNr <= rows.end; row += kNr) multiply_tokens<T, W, Out, kNr>(p, first, end, row);
    for (; row < rows.end; ++row) multiply_tokens<T, W, Out, 1>(p, first, end, row);
  }
}

}  // namespace

void linear(const LinearParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_dtype<float, BF16, F16>(p.weight_dtype, [&]<class W>() {
      dispatch_dtype<float, BF16>(p.out_dtype, [&]<class Out>() { run<T, W, Out>(p, team); });
    });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
