// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on packed 4- and 8-bit weights (common/formats/formats.h), and what
// may follow (linear_output.h).
//
// x is quantized once per call (linear_input.h). A group of 32 of a weight row then contributes
//   dw dx (sum qw qx - offset sum qx) + m dx sum qx,      offset 8 for Q4_0, m for Q4_1 only
// where the sums are integers, hence exact, and both sums over qx use the quantized x, so that the
// error is that of x under the real weights. Groups are added in order of k, in f32, in two fused
// steps: this one definition holds for any number of tokens, threads or tiles, so a token's result
// does not depend on what it is batched with.
//
// Work: a thread owns a range of strips (16 output rows, side by side in the lanes of one register
// or more). For each block of up to kRowBlock tokens it walks a strip once: eight registers of
// unpacked quants at a time serve every token of the block (vec/strip.h). A few strips at a time
// stay in L1 while all tokens pass by. Bytes: weights once (18, 20 or 34 bytes per 32 weights), x
// once per strip tile, out once. FLOPs: 2 per weight and token, 32 multiply-adds per instruction
// with VNNI. Below 8 tokens bound by memory, above by integer throughput. Limits: in_features a
// multiple of 32.
//
// Measured on two cores of a shared AMD EPYC (Zen 4, 3.7 GHz: 473 int8 GOP/s a core, of which the
// scales leave 343 for Q4_1; reads 28-34 GB/s), Q4_1, the layers of a 135M model:
//   decode, GB/s on two threads: scales at the end of a strip 13-18, beside their quants 31-35;
//   gate and up by turns, in huge pages 39, one after the other, in pages of 4 KiB 27
//   prefill, GOP/s on one thread, 8 bits: 302; rows of a block side by side (one stream of x) 305;
//   two strips at a time 227 (fewer loads, but sums that no longer fit the registers); one chain of
//   dot products a row in place of two 230; 2048 tokens 270, by blocks of 256 300
//   the same for AVX2: 213, 16-bit x 132, Q8_0 142; all words of a group unpacked at once 60 and
//   49 (spilled for every row); all words of half a strip at a time 206 where this loop alone
//   does 253; Q8_0 by |w| and signs of x 123, as two planes of nibbles 138, where this does 159
//   the same without SIMD but SSE2: 43, by plain loops 2
//   two strips at a time word by word, results in memory: 323-333 where one strip makes 260-328 in
//   a loop of its own, but 0.95 to 1.05 times as fast in whole ops
//   blocks of 16 rows in place of 8, 9 bits in place of 12 (16 in the groups of large channels):
//   model steps of 8 and 32 rows in 0.96 and 0.93 of the time, prefill 0.97
//   9 bits: 1.14 to 1.20 times the time of 8 bits for 128 rows, 16 bits 1.7; for AVX2 1.3 to 1.4;
//   for one row, bound by memory, none of them costs any
//   the scales of a group loaded before its quants: one row of the LM head 1.2 times as long
#include "cpu/kernel_table.h"
#include "cpu/linear/linear_input.h"
#include "cpu/linear/linear_output.h"
#include "cpu/vec/strip.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// Quantized rows that stay in the second-level cache, and strips that stay in the first, while
/// they pass each other.
constexpr int64_t kTokenBlock = 256;
constexpr int64_t kStripsPerTile = 2;
/// Sums of so many tokens stay in registers: AVX-512 has room for all, elsewhere the weights' words
/// need it.
constexpr int kUnrolledRows = F32::kWidth == 16 ? kRowBlock : 1;
/// How far ahead of the dot products weights are asked for.
constexpr int kPrefetchBytes = 4096;
/// So few quantized rows each thread makes for itself: sooner done than a barrier is passed.
constexpr int64_t kOwnBytes = 4096;

/// What a weight is times the integers of x: its layout, its dot products, what its quants are too
/// large by.
template <class WeightFormat, int kBits>
struct Operands {
  using Format = WeightFormat;
  using Group = StripGroup<Format>;
  using Dots = LAMPO_ISA::Dots<Format::kCodeBits == 4, kBits>;
  static constexpr int kOffset = Format::kOffset + Dots::kCodeBias;
};

/// The words of a phase times kRows rows of x, then those of the phases after it; finish gets row
/// and sums.
template <class Dots, int kPhase, int kRows, class Finish>
[[gnu::always_inline]] inline void add_phases(const uint8_t* group, const Words (&words)[8],
                                              const int8_t* x, Sums (&sums)[kRows],
                                              Finish&& finish) {
#pragma GCC unroll kUnrolledRows
  for (int r = 0; r < kRows; ++r) {
    Sums sum = kPhase == 0 ? Sums{} : sums[r];
    Dots::template add<kPhase>(group, words, x + r * Dots::kRowBytes, sum);
    if constexpr (kPhase + 1 == Dots::kPhases) {
      finish(r, sum);
    } else {
      sums[r] = sum;
    }
  }
  if constexpr (kPhase + 1 < Dots::kPhases) {
    Words next[8];
    Dots::template load<kPhase + 1>(group, next);
    add_phases<Dots, kPhase + 1>(group, next, x, sums, finish);
  }
}

/// acc + a group of a strip times the rows at `rows`.
template <class Q, int kRows>
[[gnu::always_inline]] inline void add_group(const uint8_t* group, const QuantizedRows& rows,
                                             F32 (&acc)[kRows][kParts]) {
  Words words[8];
  Q::Dots::template load<0>(group, words);
  // Not before the words: the hardware follows loads in the order of their addresses.
  asm volatile("" ::: "memory");
  F32 scale[kParts], minimum[kParts];
  for (int part = 0; part < kParts; ++part) {
    const auto halves = [&](int offset) {
      return load(reinterpret_cast<const F16*>(group + offset) + part * F32::kWidth);
    };
    scale[part] = halves(Q::Group::kScaleOffset);
    if constexpr (Q::Format::kHasMinimum) minimum[part] = halves(Q::Group::kMinimumOffset);
  }
  Sums sums[kRows];
  add_phases<typename Q::Dots, 0>(group, words, rows.quants, sums, [&](int r, const Sums& sum) {
    const int32_t start = Q::kOffset == 0 ? 0 : rows.start[r];
    const F32 row_scale(rows.scale[r]), row_sum(rows.sum[r]);
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      F32 total = fma(Q::Dots::to_float(sum.part[i], start), scale[i] * row_scale, acc[r][i]);
      if constexpr (Q::Format::kHasMinimum) total = fma(minimum[i], row_sum, total);
      acc[r][i] = total;
    }
  });
}

/// One strip times the rows [row, row + kRows) of a block.
template <class Q, int kRows>
inline void strip_dot(const uint8_t* strip, const QuantizedRows& rows, int64_t row,
                      F32 (&result)[kRows][kParts]) {
  F32 acc[kRows][kParts];
  const int64_t step = rows.block_rows(row / kRowBlock * kRowBlock);
  const QuantizedRows first = rows.from(rows.place(row));
  for (int64_t g = 0; g < rows.groups; ++g) {
    const uint8_t* group = strip + g * Q::Group::kBytes;
    for (int i = 0; i < Q::Group::kBytes; i += 64) prefetch_l1(group + kPrefetchBytes + i);
    add_group<Q>(group, first.from(g * step), acc);
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) result[r][i] = acc[r][i];
  }
}

template <class Q, class Out, bool kGated>
class Product {
 public:
  Product(const LinearParams& params, const QuantizedRows& rows)
      : p(params), rows_(rows), strip_bytes_(rows.groups * Q::Group::kBytes) {}

  void run(const Team& team) const {
    const int64_t num_strips = (num_outputs(p) + kStripRows - 1) / kStripRows;
    const Share mine = share_of(num_strips, team);
    for (int64_t row = 0; row < p.num_tokens; row += kTokenBlock) {
      const int64_t end = row + kTokenBlock < p.num_tokens ? row + kTokenBlock : p.num_tokens;
      for (int64_t first = mine.begin; first < mine.end; first += kStripsPerTile) {
        const int64_t last = first + kStripsPerTile < mine.end ? first + kStripsPerTile : mine.end;
        multiply_rows<kRowBlock>({first, last}, {row, end});
      }
    }
  }

 private:
  /// kRows rows at a time, what is left by smaller blocks.
  template <int kRows>
  void multiply_rows(Share strips, Share rows) const {
    for (; rows.begin + kRows <= rows.end; rows.begin += kRows) {
      multiply<kRows>(strips, rows.begin);
    }
    if constexpr (kRows > 1) {
      if (rows.begin < rows.end) multiply_rows<kRows / 2>(strips, rows);
    }
  }

  template <int kRows>
  void multiply(Share strips, int64_t row) const {
    const uint8_t* weight = static_cast<const uint8_t*>(p.weight);
    for (int64_t s = strips.begin; s < strips.end; ++s) {
      F32 acc[kRows][kParts];
      const uint8_t* strip = weight + (kGated ? 2 * s : s) * strip_bytes_;
      strip_dot<Q>(strip, rows_, row, acc);
      if constexpr (kGated) {
        F32 up[kRows][kParts];
        strip_dot<Q>(strip + strip_bytes_, rows_, row, up);
        write(row, s * kStripRows, acc, up);
      } else {
        write(row, s * kStripRows, acc, acc);
      }
    }
  }

  template <int kRows>
  void write(int64_t token, int64_t row, const F32 (&value)[kRows][kParts],
             const F32 (&up)[kRows][kParts]) const {
    for (int i = 0; i < kParts && row < num_outputs(p); ++i, row += F32::kWidth) {
      const int64_t left = num_outputs(p) - row;
      const int n = left < F32::kWidth ? static_cast<int>(left) : F32::kWidth;
      for (int r = 0; r < kRows; ++r) {
        write_outputs<Out>(p, token + r, row, n, value[r][i], up[r][i]);
      }
    }
  }

  const LinearParams& p;
  const QuantizedRows& rows_;
  const int64_t strip_bytes_;
};

template <class Format, int kBits>
void run(const LinearParams& p, const Team& team) {
  using Q = Operands<Format, kBits>;
  alignas(64) char own[kOwnBytes];
  const bool fits = QuantizedRows::bytes(p, Q::Dots::kRowBytes) <= kOwnBytes;
  const QuantizedRows rows(p, Q::Dots::kRowBytes, fits ? own : p.workspace);
  quantize_rows<typename Q::Dots, kBits>(
      p, rows, Q::kOffset, fits ? Share{0, p.num_tokens} : share_of(p.num_tokens, team));
  if (!fits) team.sync();
  dispatch_dtype<float, BF16>(p.out_dtype, [&]<class Out>() {
    if (p.silu_mul) {
      Product<Q, Out, true>(p, rows).run(team);
    } else {
      Product<Q, Out, false>(p, rows).run(team);
    }
  });
}

}  // namespace

void linear_packed(const LinearParams& p, const Team& team) {
  dispatch_int<8, 9, 16>(p.activation_bits, [&]<int kBits>() {
    dispatch_format(p.format, [&]<class Format>() { run<Format, kBits>(p, team); });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
