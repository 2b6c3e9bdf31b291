// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on packed weights with E4M3 codes (common/formats/fp8_g128.h), with gate
// or residual (linear_output.h). x stays float32, so activation_bits has no meaning here.
//
// A word of a strip has four codes of a row. They are widened in pairs, 0 and 2, then 1 and 3, to
// neighbouring lanes: two lanes have a row, and each loaded x serves 8 or 4 rows. Widening goes by
// float16 and gives 2^-8 times the value, exactly.
//
// An output is the sum of its two lanes; a lane is the sum over blocks of 128 inputs, in order, of
// d times the block's sum: the sum of two chains, of the first pairs and of the second. This
// definition does not depend on the tiling, so a token's result does not depend on its batch.
//
// Work: a thread owns a range of strips. kChains sums are in registers: those of one row of x and a
// whole strip, or of more rows and a part of it.
// Bytes: weights once per kTokenBlock tokens. FLOPs: 2 per weight and token.
#include "cpu/kernel_table.h"
#include "cpu/linear/experts.h"
#include "cpu/linear/linear_input.h"
#include "cpu/linear/linear_output.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

using Format = formats::FP8_G128;
using Group = StripGroup<Format>;

/// Vectors of a strip: two lanes a row.
constexpr int kVectors = 2 * kStripRows / F32::kWidth;
constexpr int kChains = F32::kWidth == 16 ? 16 : 8;
/// Rows of x that a walk over a strip multiplies.
constexpr int kRowsAtOnce = kChains / 2;
constexpr int64_t kTokenBlock = 64;
constexpr int64_t kStripsPerTile = 1;
constexpr int kPrefetchBytes = 4096;
constexpr int kBlockWords = Format::kBlockSize / 4;
/// If all prepared rows fit in this many bytes, every thread prepares its own copy: cheaper than a
/// barrier.
constexpr int64_t kPrivateBytes = 8192;

/// Adds a block's products with kRows rows of x to total, of kCount vectors from `first` on.
template <int kRows, int kCount>
[[gnu::always_inline]] inline void add_block(const uint8_t* block, const float* x, int64_t stride_x,
                                             int first, F32 (&total)[kRows][kVectors]) {
  constexpr int kVectorBytes = 2 * F32::kWidth;
  F32 sum[kRows][kCount][2];
  const uint8_t* words = block + Group::kFactorBytes + first * kVectorBytes;
  for (int word = 0; word < kBlockWords; ++word, words += Group::kWordBytes, x += 4) {
    if (first == 0) prefetch_l1(words + kPrefetchBytes);
    F32 even[kCount], odd[kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) load_f8_words(words + i * kVectorBytes, even[i], odd[i]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32 x_even = load_pair(x + r * stride_x), x_odd = load_pair(x + r * stride_x + 2);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        sum[r][i][0] = fma(even[i], x_even, sum[r][i][0]);
        sum[r][i][1] = fma(odd[i], x_odd, sum[r][i][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    const auto* d = reinterpret_cast<const float*>(block) + (first + i) * F32::kWidth / 2;
    const F32 factor = load_twice(d);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32 of_block = (sum[r][i][0] + sum[r][i][1]) * F32(256.0f);
      total[r][first + i] = fma(of_block, factor, total[r][first + i]);
    }
  }
}

/// result = one strip times kRows rows of x.
template <int kRows>
[[gnu::noinline]] void strip_dot(const uint8_t* strip, const float* x, int64_t stride_x,
                                 int64_t in_features, float (&result)[kRows][kStripRows]) {
  constexpr int kFitting = kChains / (2 * kRows);
  constexpr int kCount = kFitting < kVectors ? kFitting : kVectors;
  F32 total[kRows][kVectors];
  for (int64_t k = 0; k < in_features; k += Format::kBlockSize, strip += Group::kBlockBytes) {
    for (int first = 0; first < kVectors; first += kCount) {
      add_block<kRows, kCount>(strip, x + k, stride_x, first, total);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float lanes[2 * kStripRows];
    for (int i = 0; i < kVectors; ++i) store(lanes + i * F32::kWidth, total[r][i]);
    for (int i = 0; i < kStripRows; ++i) result[r][i] = lanes[2 * i] + lanes[2 * i + 1];
  }
}

/// x: prepared rows.
template <class Out>
class Product {
 public:
  Product(const LinearParams& params, const float* x) : p(params), x_(x) {}

  void run(const Team& team) const {
    const int64_t num_strips = (num_outputs(p) + kStripRows - 1) / kStripRows;
    if (p.num_experts == 0) {
      for_each_tile(p.num_tokens, kTokenBlock, num_strips, kStripsPerTile, team,
                    [&](Share rows, Share strips) { multiply_rows<kRowsAtOnce>(strips, rows); });
      return;
    }
    for_each_expert_tile(p, kTokenBlock, num_strips, kStripsPerTile, team,
                         [&](int64_t expert, Share rows, Share strips) {
                           const Share all = expert_rows(p, expert);
                           const LinearParams part = expert_part(p, expert, all);
                           Product(part, x_ + all.begin * p.in_features)
                               .template multiply_rows<kRowsAtOnce>(
                                   strips, {rows.begin - all.begin, rows.end - all.begin});
                         });
  }

 private:
  /// Multiplies kRows rows at a time, the remainder in smaller blocks.
  template <int kRows>
  void multiply_rows(Share strips, Share rows) const {
    for (; rows.begin + kRows <= rows.end; rows.begin += kRows) {
      for (int64_t s = strips.begin; s < strips.end; ++s) multiply<kRows>(s, rows.begin);
    }
    if constexpr (kRows > 1) {
      if (rows.begin < rows.end) multiply_rows<kRows / 2>(strips, rows);
    }
  }

  template <int kRows>
  void multiply(int64_t s, int64_t token) const {
    const int64_t strip_bytes = Group::strip_bytes(p.in_features);
    const auto* strip =
        static_cast<const uint8_t*>(p.weight) + (p.silu_mul ? 2 * s : s) * strip_bytes;
    const float* x = x_ + token * p.in_features;
    float value[kRows][kStripRows], up[kRows][kStripRows];
    strip_dot<kRows>(strip, x, p.in_features, p.in_features, value);
    if (p.silu_mul) strip_dot<kRows>(strip + strip_bytes, x, p.in_features, p.in_features, up);
    const int64_t column = s * kStripRows, left = num_outputs(p) - column;
    for (int i = 0; i < kStripRows && i < left; i += F32::kWidth) {
      const int n = left - i < F32::kWidth ? static_cast<int>(left - i) : F32::kWidth;
      for (int r = 0; r < kRows; ++r) {
        const F32 gate = load(value[r] + i);
        write_outputs<Out>(p, token + r, column + i, n, gate, p.silu_mul ? load(up[r] + i) : gate);
      }
    }
  }

  const LinearParams& p;
  const float* x_;
};

/// Writes rows of x after the norm, the second and third input of every word exchanged.
template <class T>
void prepare_rows(const LinearParams& p, float* to, Share tokens) {
  for (int64_t token = tokens.begin; token < tokens.end; ++token) {
    float* row = to + token * p.in_features;
    with_input_row<T>(p, token, [&](auto&& read) {
      for_each_vector(p.in_features, [&](int64_t i, int n) { store_n(row + i, read(i, n), n); });
    });
    for (int64_t i = 0; i < p.in_features; i += 4) std::swap(row[i + 1], row[i + 2]);
  }
}

}  // namespace

void linear_fp8(const LinearParams& p, const Team& team) {
  alignas(64) float copy[kPrivateBytes / 4];
  const bool is_private = p.num_tokens * p.in_features * 4 <= kPrivateBytes;
  float* rows = is_private ? copy : static_cast<float*>(p.workspace);
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    prepare_rows<T>(p, rows, is_private ? Share{0, p.num_tokens} : share_of(p.num_tokens, team));
  });
  if (!is_private) team.sync();
  dispatch_dtype<float, BF16>(p.out_dtype, [&]<class Out>() { Product<Out>(p, rows).run(team); });
}

}  // namespace lampo::cpu::LAMPO_ISA
