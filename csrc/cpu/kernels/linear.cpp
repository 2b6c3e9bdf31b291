// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on dense weights (f32, bf16, f16), row-major as stored, and what may
// follow (linear_output.h).
//
// Lane l of an accumulator sums k = l, l + kWidth, ... in order (of BF16 times BF16, where the CPU
// multiplies pairs, k = 2l, 2l + 1, 2l + 2 kWidth, ...); lanes are added in one fixed tree. That
// definition does not depend on the tiling, so neither does a token's result on its batch.
//
// Work: a thread owns a range of output rows and takes them kNr at a time against kMr tokens: kMr
// kNr accumulators in registers, each loaded vector of x and of w used kNr and kMr times. Weights
// are widened to f32 as they are loaded. Tokens come in blocks that stay in L2. A few tokens take
// one row after the other: one stream from memory. Bytes: weights once per kTokenBlock tokens.
// FLOPs: 2 per weight and token. Below about 4 tokens bound by memory, above by multiply-adds in
// f32 or on BF16 pairs.
//
// Measured on two cores of a shared AMD EPYC (Zen 4) that read 28 GB/s, 106 MB of BF16 weights
// [3072, 576], one token: four rows at a time 12 GB/s, prefetching the next four 17; one row at a
// time 24.
#include "cpu/kernel_table.h"
#include "cpu/linear_input.h"
#include "cpu/linear_output.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int kNr = 4;
constexpr int kMr =
    F32::kWidth == 16 ? 6 : 2;  // kMr * kNr accumulators: 24 of 32, 8 of 16 registers
constexpr int64_t kTokenBlock = 96;
constexpr int kFewTokens = 8;
constexpr int kPrefetchBytes = 4096;
/// So many bytes of normed rows each thread makes for itself: sooner done than a barrier is passed.
constexpr int64_t kOwnBytes = 8192;

template <class T, class W, int kRows, int kColumns>
inline void dot_tile(const T* x, int64_t stride_x, const W* w, int64_t stride_w, int64_t size,
                     float (&result)[kRows][kColumns]) {
  F32 acc[kRows][kColumns];
  const auto step = [&](int64_t k, auto&& read, auto&& add_product) {
    F32 wk[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      const W* at = w + c * stride_w + k;
      prefetch_l1(reinterpret_cast<const char*>(at) + kPrefetchBytes);
      wk[c] = read(at);
    }
    for (int r = 0; r < kRows; ++r) {
      const F32 xk = read(x + r * stride_x + k);
      for (int c = 0; c < kColumns; ++c) acc[r][c] = add_product(xk, wk[c], acc[r][c]);
    }
  };
  const auto multiply_add = [](F32 a, F32 b, F32 c) { return fma(a, b, c); };
  int64_t k = 0;
  if constexpr (kHasDotBF16 && std::is_same_v<T, BF16> && std::is_same_v<W, BF16>) {
    const auto pairs = [](const BF16* p) { return load(reinterpret_cast<const float*>(p)); };
    const auto dot = [](auto a, F32 b, F32 c) { return dot_bf16(a, b, c); };
    for (; k + 2 * F32::kWidth <= size; k += 2 * F32::kWidth) step(k, pairs, dot);
  }
  for (; k + F32::kWidth <= size; k += F32::kWidth) {
    step(k, [](const auto* p) { return load(p); }, multiply_add);
  }
  if (k < size) {
    const int n = static_cast<int>(size - k);
    step(k, [n](const auto* p) { return load_n(p, n); }, multiply_add);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) result[r][c] = reduce_add(acc[r][c]);
  }
}

template <class T, class W, class Out>
class Product {
 public:
  Product(const LinearParams& params, const T* x, int64_t stride_x)
      : p(params),
        x_(x),
        stride_x_(stride_x),
        up_rows_(params.silu_mul ? num_outputs(params) : 0) {}

  void run(const Team& team) const {
    const Share rows = share_of(num_outputs(p), team, 16);
    for (int64_t first = 0; first < p.num_tokens; first += kTokenBlock) {
      const int64_t end = first + kTokenBlock < p.num_tokens ? first + kTokenBlock : p.num_tokens;
      int64_t row = rows.begin;
      if (p.num_tokens > kFewTokens) {
        for (; row + kNr <= rows.end; row += kNr) multiply_tokens<kMr, kNr>(first, end, row);
      }
      for (; row < rows.end; ++row) multiply_tokens<kFewTokens, 1>(first, end, row);
    }
  }

 private:
  /// kRows tokens at a time, what is left by smaller tiles.
  template <int kRows, int kColumns>
  void multiply_tokens(int64_t token, int64_t end, int64_t row) const {
    for (; token + kRows <= end; token += kRows) multiply_tile<kRows, kColumns>(token, row);
    if constexpr (kRows > 1) {
      if (token < end) multiply_tokens<kRows / 2, kColumns>(token, end, row);
    }
  }

  template <int kRows, int kColumns>
  void multiply_tile(int64_t token, int64_t row) const {
    static_assert(kColumns <= F32::kWidth);
    float value[kRows][kColumns];
    float up[kRows][kColumns] = {};
    dot_rows(token, row, value);
    if (up_rows_ != 0) dot_rows(token, up_rows_ + row, up);
    for (int r = 0; r < kRows; ++r) {
      write_outputs<Out>(p, token + r, row, kColumns, load_n(value[r], kColumns),
                         load_n(up[r], kColumns));
    }
  }

  template <int kRows, int kColumns>
  void dot_rows(int64_t token, int64_t row, float (&result)[kRows][kColumns]) const {
    const W* weight = static_cast<const W*>(p.weight) + row * p.stride_weight_row;
    dot_tile<T, W, kRows, kColumns>(x_ + token * stride_x_, stride_x_, weight, p.stride_weight_row,
                                    p.in_features, result);
  }

  const LinearParams& p;
  const T* x_;
  const int64_t stride_x_;
  const int64_t up_rows_;
};

/// Rows of x after the norm, rounded to their type.
template <class T>
void norm_rows(const LinearParams& p, T* to, Share tokens) {
  for (int64_t token = tokens.begin; token < tokens.end; ++token) {
    with_input_row<T>(p, token, [&](auto&& read) {
      for_each_vector(p.in_features, [&](int64_t i, int n) {
        store_n(to + token * p.in_features + i, read(i, n), n);
      });
    });
  }
}

template <class T>
void run(const LinearParams& p, const Team& team) {
  alignas(64) char own[kOwnBytes];
  const T* x = static_cast<const T*>(p.x);
  int64_t stride_x = p.stride_x_token;
  if (p.norm_weight != nullptr) {
    const bool fits = p.num_tokens * p.in_features * static_cast<int64_t>(sizeof(T)) <= kOwnBytes;
    T* normed = static_cast<T*>(fits ? static_cast<void*>(own) : p.workspace);
    norm_rows(p, normed, fits ? Share{0, p.num_tokens} : share_of(p.num_tokens, team));
    if (!fits) team.sync();
    x = normed;
    stride_x = p.in_features;
  }
  dispatch_dtype<float, BF16, F16>(p.weight_dtype, [&]<class W>() {
    dispatch_dtype<float, BF16>(p.out_dtype,
                                [&]<class Out>() { Product<T, W, Out>(p, x, stride_x).run(team); });
  });
}

}  // namespace

void linear(const LinearParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() { run<T>(p, team); });
}

}  // namespace lampo::cpu::LAMPO_ISA
