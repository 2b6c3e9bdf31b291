// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on dense weights (f32, bf16, f16), row-major as stored, with gate or
// residual (linear_output.h).
//
// BF16 weights, where the CPU multiplies pairs of BF16: x is rounded once per call to BF16
// (activation_bits 8, the significant bits of a number) or to the sum of two BF16, high and low
// (16), for twice the products. A BF16 x is used unchanged. All other types are widened to f32 when
// they are loaded.
// Lane l of an accumulator sums k = l, l + kWidth, ... in order; with pairs k = 2l, 2l + 1,
// 2l + 2 kWidth, ..., with separate sums for high and low. Lanes are added in one fixed tree. This
// definition does not depend on the tiling, so a token's result does not depend on its batch.
// With experts (experts.h) the rows of x are prepared in the order of the rows of out.
//
// Work: a thread owns a range of output rows. It multiplies kNr of them with kMr tokens at a time:
// kMr kNr accumulators in registers; a loaded vector of x serves kNr products, one of w kMr. The
// sums of 16 rows are finished together, so a gate takes one exponential for them. Tokens come in
// blocks that stay in L2. Up to kFewTokens tokens are multiplied row by row: one stream from
// memory.
// Bytes: weights once per kTokenBlock tokens. FLOPs: 2 per weight and token. Bound by memory below
// about 4 tokens, by multiply-adds above.
//
// Measured on two cores of a shared AMD EPYC (Zen 4) that read 28 to 45 GB/s.
//   One token, 57 MB of BF16 weights [49152, 576], two threads, GB/s:
//     this loop 43; prefetch into the first-level cache only 27; no prefetch 40; in f32 38; two
//     rows at a time 21
//   512 tokens, one thread, GFLOP/s:
//     x as one BF16 182-212, as two 97-106; f32 93-98; sums of a tile spilled after its loop
//     130-169 high and low in one chain: equal here, slower for one token (products wait for one
//     another)
// SmolLM2 with BF16 weights, mean divergence from f32 activations (1024 tokens of prose): x as one
// BF16 everywhere 1.0e-4, before gate and up only 3.4e-5, two BF16 everywhere below 1e-6.
#include "cpu/kernel_table.h"
#include "cpu/linear/linear_input.h"
#include "cpu/linear/linear_output.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// Output rows of a tile.
constexpr int kNr = 4;
/// Tokens of a tile. Its kMr * kNr * kTerms accumulators take 24 of 32 registers, or 8 of 16.
template <class P>
constexpr int kMr = F32::kWidth == 16 ? 6 / P::kTerms : 2;
constexpr int kRowsAtOnce = 16;
constexpr int64_t kTokenBlock = 96;
constexpr int kFewTokens = 8;
constexpr int kPrefetchBytes = 8192, kPrefetchBytesL1 = 1024;
/// If all prepared rows fit in this many bytes, every thread prepares its own copy: cheaper than a
/// barrier.
constexpr int64_t kPrivateBytes = 8192;

/// Products in f32: T and W are widened as they are loaded.
template <class T, class W>
struct FloatProducts {
  using X = T;
  using Weight = W;
  static constexpr int kStep = F32::kWidth;
  static constexpr int kTerms = 1;

  template <class U>
  static F32 load(const U* p) {
    return LAMPO_ISA::load(p);
  }
  template <class U>
  static F32 load_n(const U* p, int n) {
    return LAMPO_ISA::load_n(p, n);
  }
  static F32 add(F32 x, F32 w, F32 sum) { return fma(x, w, sum); }
};

#if defined(__AVX512BF16__)
/// Products of pairs of BF16. x is a sum of kTerms BF16; a row holds them by turns, a step of each.
template <int kTermsOfX>
struct PairProducts {
  using X = BF16;
  using Weight = BF16;
  static constexpr int kStep = 2 * F32::kWidth;
  static constexpr int kTerms = kTermsOfX;

  static F32 load(const BF16* p) { return load_pairs(p); }
  static F32 load_n(const BF16* p, int n) { return load_pairs_n(p, n); }
  static F32 add(F32 x, F32 w, F32 sum) { return dot_bf16(x, w, sum); }
};
#endif

/// result[r * kRowsAtOnce + c] = row r of x times row c of w.
template <class P, bool kStreamed, int kRows, int kColumns>
inline void dot_tile(const typename P::X* x, int64_t stride_x, const typename P::Weight* w,
                     int64_t stride_w, int64_t size, float* result) {
  F32 acc[kRows][kColumns][P::kTerms];
  const auto step = [&](int64_t k, auto&& read) {
    F32 wk[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      const typename P::Weight* at = w + c * stride_w + k;
      if (kStreamed) {
        prefetch(reinterpret_cast<const char*>(at) + kPrefetchBytes);
        prefetch_l1(reinterpret_cast<const char*>(at) + kPrefetchBytesL1);
      }
      wk[c] = read(at);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int term = 0; term < P::kTerms; ++term) {
        const F32 xk = read(x + r * stride_x + k * P::kTerms + term * P::kStep);
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) acc[r][c][term] = P::add(xk, wk[c], acc[r][c][term]);
      }
    }
  };
  int64_t k = 0;
  for (; k + P::kStep <= size; k += P::kStep) {
    step(k, [](const auto* p) { return P::load(p); });
  }
  if (k < size) {
    const int n = static_cast<int>(size - k);
    step(k, [n](const auto* p) { return P::load_n(p, n); });
  }
  const auto sum = [&](int r, int c) {
    return P::kTerms == 1 ? acc[r][c][0] : acc[r][c][0] + acc[r][c][P::kTerms - 1];
  };
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r, result += kRowsAtOnce) {
    if constexpr (kColumns == 4) {
      store_n(result, reduce_add(sum(r, 0), sum(r, 1), sum(r, 2), sum(r, 3)), 4);
    } else {
      for (int c = 0; c < kColumns; ++c) result[c] = reduce_add(sum(r, c));
    }
  }
}

template <class P, class Out>
class Product {
 public:
  Product(const LinearParams& params, const typename P::X* x, int64_t stride_x)
      : p(params), x_(x), stride_x_(stride_x) {}

  /// Not in line: one copy serves products with and without experts.
  [[gnu::noinline]] void multiply_tile(Share tokens, Share rows) const {
    if (p.num_tokens > kFewTokens) {
      multiply_tokens<kMr<P>, kNr>(tokens.begin, tokens.end, rows);
    } else {
      multiply_tokens<kFewTokens / P::kTerms, 1>(tokens.begin, tokens.end, rows);
    }
  }

 private:
  /// Multiplies kRows tokens at a time, the remainder in smaller tiles.
  template <int kRows, int kColumns>
  void multiply_tokens(int64_t token, int64_t end, Share rows) const {
    for (; token + kRows <= end; token += kRows) multiply<kRows, kColumns>(token, rows);
    if constexpr (kRows > 1) {
      if (token < end) multiply_tokens<kRows / 2, kColumns>(token, end, rows);
    }
  }

  template <int kRows, int kColumns>
  void multiply(int64_t token, Share rows) const {
    float value[kRows][kRowsAtOnce], up[kRows][kRowsAtOnce];
    const int64_t row = weight_row(p, rows.begin);
    const int count = static_cast<int>(rows.end - rows.begin);
    dot_rows<kRows, kColumns>(token, row, count, value[0]);
    if (p.silu_mul) dot_rows<kRows, kColumns>(token, row + kStripRows, count, up[0]);
    for (int i = 0; i < count; i += F32::kWidth) {
      const int n = count - i < F32::kWidth ? count - i : F32::kWidth;
      for (int r = 0; r < kRows; ++r) {
        const F32 gate = load_n(value[r] + i, n);
        write_outputs<Out>(p, token + r, rows.begin + i, n, gate,
                           p.silu_mul ? load_n(up[r] + i, n) : gate);
      }
    }
  }

  /// Multiplies `count` rows of weight, kColumns at a time, the remainder one by one.
  template <int kRows, int kColumns>
  void dot_rows(int64_t token, int64_t row, int count, float* result) const {
    const auto* w = static_cast<const typename P::Weight*>(p.weight) + row * p.stride_weight_row;
    const auto* x = x_ + token * stride_x_;
    int done = 0;
    const auto dot = [&]<int kCount>() {
      for (; done + kCount <= count; done += kCount) {
        dot_tile<P, kColumns == 1, kRows, kCount>(x, stride_x_, w + done * p.stride_weight_row,
                                                  p.stride_weight_row, p.in_features,
                                                  result + done);
      }
    };
    dot.template operator()<kColumns>();
    if constexpr (kColumns > 1) dot.template operator()<1>();
  }

  const LinearParams& p;
  const typename P::X* x_;
  const int64_t stride_x_;
};

/// Number of elements of a prepared row.
template <class P>
int64_t row_size(int64_t in_features) {
  return P::kTerms == 1 ? in_features
                        : (in_features + P::kStep - 1) / P::kStep * P::kStep * P::kTerms;
}

/// Prepares rows of x for the products: norm, then rounding to their type or splitting into terms.
template <class P, class T>
void prepare_rows(const LinearParams& p, typename P::X* to, Share tokens) {
  const int64_t stride = row_size<P>(p.in_features);
  for (int64_t token = tokens.begin; token < tokens.end; ++token) {
    typename P::X* row = to + token * stride;
    with_input_row<T>(p, token, [&](auto&& read) {
      for_each_vector(p.in_features, [&](int64_t i, int n) {
        F32 rest = read(i, n);
        typename P::X* at = row + i / P::kStep * P::kStep * P::kTerms + i % P::kStep;
        for (int term = 0; term < P::kTerms; ++term, at += P::kStep) {
          store_n(at, rest, n);
          if (term + 1 < P::kTerms) rest = rest - load_n(at, n);
        }
      });
    });
  }
}

/// Multiplies all rows of x, those of an expert with its weight.
template <class P, class Out>
void multiply(const LinearParams& p, const typename P::X* x, int64_t stride_x, const Team& team) {
  if (p.num_experts == 0) {
    const Product<P, Out> product(p, x, stride_x);
    for_each_tile(p.num_tokens, kTokenBlock, num_outputs(p), kRowsAtOnce, team,
                  [&](Share tokens, Share rows) { product.multiply_tile(tokens, rows); });
    return;
  }
  for_each_expert_tile(p, kTokenBlock, num_outputs(p), kRowsAtOnce, team,
                       [&](int64_t expert, Share tokens, Share rows) {
                         const Share all = expert_rows(p, expert);
                         const LinearParams part = expert_part(p, expert, all);
                         Product<P, Out>(part, x + all.begin * stride_x, stride_x)
                             .multiply_tile({tokens.begin - all.begin, tokens.end - all.begin},
                                            rows);
                       });
}

template <class P, class T>
void run(const LinearParams& p, const Team& team) {
  using X = typename P::X;
  alignas(64) char copy[kPrivateBytes];
  const X* x = static_cast<const X*>(p.x);
  int64_t stride_x = p.stride_x_token;
  if (p.norm_weight != nullptr || p.x_rows != nullptr || !std::is_same_v<X, T>) {
    const int64_t num_rows = shares_one_row(p) ? 1 : p.num_tokens;
    const int64_t size = row_size<P>(p.in_features);
    const bool is_private = num_rows * size * static_cast<int64_t>(sizeof(X)) <= kPrivateBytes;
    X* rows = static_cast<X*>(is_private ? static_cast<void*>(copy) : p.workspace);
    prepare_rows<P, T>(p, rows, is_private ? Share{0, num_rows} : share_of(num_rows, team));
    if (!is_private) team.sync();
    x = rows;
    stride_x = num_rows == 1 ? 0 : size;
  }
  dispatch_dtype<float, BF16>(p.out_dtype,
                              [&]<class Out>() { multiply<P, Out>(p, x, stride_x, team); });
}

}  // namespace

void linear(const LinearParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_dtype<float, BF16, F16>(p.weight_dtype, [&]<class W>() {
#if defined(__AVX512BF16__)
      if constexpr (std::is_same_v<W, BF16>) {
        if (std::is_same_v<T, BF16> || p.activation_bits == 8) {
          return run<PairProducts<1>, T>(p, team);
        }
        return run<PairProducts<2>, T>(p, team);
      }
#endif
      run<FloatProducts<T, W>, T>(p, team);
    });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
