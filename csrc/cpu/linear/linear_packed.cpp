// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on packed weights (common/formats/formats.h), with gate or residual
// (linear_output.h).
//
// x is quantized once per call (linear_input.h). A group of 32 inputs contributes to an output
//   dw dx (sum qw qx - offset sum qx) + m dx sum qx
// with dw, m and offset of the weight's format, in two halves where 16 weights share a scale. Sums
// are of integers, hence exact; both use the quantized x, so the error is that of x under the real
// weights. Groups are added in the order of the inputs, in f32, by two fused steps: this definition
// holds for any number of tokens, threads and tiles, so a token's result does not depend on its
// batch.
// With experts (experts.h) the rows of x are quantized in the order of the rows of out.
//
// Work: a thread owns a range of strips (16 output rows in the lanes of one or more registers). It
// walks a strip once per block of up to kRowBlock tokens; eight registers of unpacked codes serve
// all tokens of the block (vec/strip.h). kStripsPerTile strips stay in L1 while all tokens pass.
// Bytes: weights once, x once per strip tile, out once. FLOPs: 2 per weight and token, 32
// multiply-adds per instruction with VNNI. Bound by memory below 8 tokens, by integer throughput
// above. Limits: in_features a multiple of the format's block.
//
// Measured on two cores of a shared AMD EPYC (Zen 4, 3.7 GHz; 473 int8 GOP/s per core, 343 with
// Q4_1's scales; reads 28-34 GB/s), Q4_1, layers of a 135M model.
//   Decode, two threads, GB/s:
//     scales beside their codes          31-35 (at the end of a strip 13-18)
//     gate and up interleaved, huge pages   39 (one after the other, 4 KiB pages 27)
//     scales loaded before the codes     1.2 times the time for one row of the LM head
//   Prefill, one thread, AVX-512, 8 bits, GOP/s:
//     this loop                          302 (rows of a block interleaved 305)
//     two strips at a time               227 (fewer loads, but sums leave the registers)
//     two strips, word by word           323-333 against 260-328 of one strip alone; whole ops 0.95
//                                        to 1.05 times as fast
//     one chain of dot products          230
//     2048 tokens                        300 in blocks of 256, else 270
//   The same, AVX2:
//     this loop                          213 (alone 253); 16-bit x 132; Q8_0 142 (alone 159)
//     all words of a group at once       60; 16-bit x 49 (spills)
//     all words of half a strip          206
//     Q8_0 by |w| and signs of x         123; as two planes of nibbles 138
//   The same, SSE2: 43; plain loops 2
//   Blocks of 16 rows, not 8; 9 bits, not 16 in groups with large channels: model steps of 8 and 32
//   rows in 0.96 and 0.93 of the time, prefill 0.97
//   9 bits, 128 rows: 1.14 to 1.20 times the time of 8 bits (AVX2 1.3 to 1.4), 16 bits 1.7; for one
//   row, bound by memory, no difference
// On a Xeon with AMX, one thread, a matrix in its second-level cache, 9 bits, 64 rows:
//   a group's words kept unpacked for outlier words, against unpacking each again: Q4_0 0.9 of the
//   time, Q5_K 0.71, Q6_K 0.69, IQ4_XS 0.77; with AVX2 0.92, 0.72, 0.77 and 1.0
//   x broadcast by the dot product's own load (AVX-512): Q4_0 0.97, one row 0.9
#include "cpu/kernel_table.h"
#include "cpu/linear/linear_input.h"
#include "cpu/linear/linear_output.h"
#include "cpu/vec/strip.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// Tokens: their quantized rows stay in the second-level cache.
constexpr int64_t kTokenBlock = 256;
/// Strips that stay in the first-level cache while a block of tokens passes.
constexpr int64_t kStripsPerTile = 2;
/// Tokens with sums in registers: all with AVX-512; elsewhere the weights' words need the
/// registers.
constexpr int kUnrolledRows = F32::kWidth == 16 ? kRowBlock : 1;
/// Distance between the dot products and the prefetch of weights.
constexpr int kPrefetchBytes = 4096;
/// If all quantized rows fit in this many bytes, every thread quantizes its own copy: cheaper than
/// a barrier.
constexpr int64_t kPrivateBytes = 4096;

/// Compile-time description of a product: the weight's format, its strips, the dot products, and
/// the excess of codes, as they are multiplied, over their values.
template <class WeightFormat, class DotsOfFormat>
struct Operands {
  using Format = WeightFormat;
  using Group = StripGroup<Format>;
  using Dots = DotsOfFormat;
  static constexpr int kScales = Group::kScales;
  static constexpr int kOffset = Format::kOffset + Dots::kCodeBias;
};

/// Factors of the scales and minima of a strip's block.
template <class Group>
struct Factors {
  F32 scale[kParts], minimum[kParts];

  explicit Factors(const uint8_t* block) {
    if constexpr (Group::kHasFactors) {
      using D = std::conditional_t<Group::kHasFloatFactors, float, F16>;
      using M = std::conditional_t<Group::kHasZeroPoints, int8_t, F16>;
      for (int i = 0; i < kParts; ++i) {
        scale[i] = load(reinterpret_cast<const D*>(block) + i * F32::kWidth);
        if constexpr (Group::kMBytes > 0) {
          minimum[i] = -load(reinterpret_cast<const M*>(block + Group::kMOffset) + i * F32::kWidth);
          if constexpr (Group::kHasZeroPoints) minimum[i] = scale[i] * minimum[i];
        }
      }
    }
  }
};

/// A part of a set of scales, or with kMinimum of minima.
template <class Format, bool kMinimum>
[[gnu::always_inline]] inline F32 load_scales(const uint8_t* set, int part, F32 factor) {
  using formats::ScaleType;
  const int first = part * F32::kWidth;
  if constexpr (Format::kScaleType == ScaleType::kF16) {
    return load(reinterpret_cast<const F16*>(set) + first);
  } else if constexpr (Format::kScaleType == ScaleType::kBF16) {
    return load(reinterpret_cast<const BF16*>(set) + first);
  } else if constexpr (Format::kScaleType == ScaleType::kHalfE4M3) {
    return load(reinterpret_cast<const F8E4M3*>(set) + first) * F32(0.5f);
  } else if constexpr (Format::kScaleType == ScaleType::kFactoredE4M3) {
    return load(reinterpret_cast<const F8E4M3*>(set) + first) * F32(0.5f) * factor;
  } else if constexpr (StripGroup<Format>::kHasZeroPoints) {
    return factor;
  } else if constexpr (Format::kScaleType == ScaleType::kI8) {
    return load(reinterpret_cast<const int8_t*>(set) + first) * factor;
  } else if constexpr (Format::kScaleType == ScaleType::kU8) {
    return load(set + first) * factor;
  } else {
    const F32 both = load(set + first);
    // (16 high + low - 7.5) / 16 is less than 1/2 from high.
    const F32 high = round_even(fma(both, F32(0.0625f), F32(-7.5f * 0.0625f)));
    return (kMinimum ? high : fma(high, F32(-16.0f), both)) * factor;
  }
}

/// Adds the products of `words`, those of phase kPhase, with kRows rows of x, then those of the
/// later phases. finish(row, sums) gets the totals.
template <class Dots, int kPhase, int kRows, class Codes, class Finish>
[[gnu::always_inline]] inline void add_phases(const uint8_t* group, Codes& codes,
                                              const Words (&words)[8], const int8_t* x,
                                              Sums<Dots::kScales> (&sums)[kRows], Finish&& finish) {
  codes.keep(kPhase, words);
#pragma GCC unroll kUnrolledRows
  for (int r = 0; r < kRows; ++r) {
    Sums<Dots::kScales> sum{};
    if (kPhase > 0) sum = sums[r];
    Dots::template add<kPhase>(codes, words, x + r * Dots::kRowBytes, sum);
    if constexpr (kPhase + 1 == Dots::kPhases) {
      finish(r, sum);
    } else {
      sums[r] = sum;
    }
  }
  if constexpr (kPhase + 1 < Dots::kPhases) {
    Words next[8];
    Dots::template load<kPhase + 1>(group, next);
    add_phases<Dots, kPhase + 1>(group, codes, next, x, sums, finish);
  }
}

/// Groups of consecutive rows of x.
template <class Q>
struct RowGroups {
  const int8_t* quants;
  const float* scale;
  const float* sum;
  const int32_t* correction;

  RowGroups(const QuantizedRows& rows, int64_t group)
      : quants(rows.quants + group * Q::Dots::kRowBytes),
        scale(rows.scale + group),
        sum(rows.sum + group * Q::kScales),
        correction(rows.correction + group * Q::kScales) {}
  void move(int64_t groups) {
    quants += groups * Q::Dots::kRowBytes;
    scale += groups;
    sum += groups * Q::kScales;
    correction += groups * Q::kScales;
  }
};

/// acc += a group of a strip times the first kRows of `rows`.
template <class Q, int kRows>
[[gnu::always_inline]] inline void add_group(const uint8_t* group,
                                             const Factors<typename Q::Group>& factors,
                                             const RowGroups<Q>& rows, F32 (&acc)[kRows][kParts]) {
  using Group = typename Q::Group;
  using Format = typename Q::Format;
  Words words[8];
  Q::Dots::template load<0>(group, words);
  // Scales after words: hardware prefetchers follow loads in the order of addresses.
  asm volatile("" ::: "memory");
  F32 scale[Q::kScales][kParts], minimum[Q::kScales][kParts];
  for (int set = 0; set < Q::kScales; ++set) {
    const uint8_t* from = group + set * Group::kScaleSetBytes;
    for (int i = 0; i < kParts; ++i) {
      scale[set][i] = load_scales<Format, false>(from + Group::kScaleOffset, i, factors.scale[i]);
      if constexpr (Format::kHasMinimum) {
        minimum[set][i] =
            load_scales<Format, true>(from + Group::kMinimumOffset, i, factors.minimum[i]);
      }
    }
  }
  Sums<Q::kScales> sums[kRows];
  std::conditional_t<Q::Dots::kHasOutlier && (kRows > 1), UnpackedWords, PackedWords> codes{group};
  add_phases<typename Q::Dots, 0>(
      group, codes, words, rows.quants, sums, [&](int r, const auto& sum) {
        const F32 row_scale(rows.scale[r]);
#pragma GCC unroll 2
        for (int set = 0; set < Q::kScales; ++set) {
          const int32_t correction = Q::kOffset == 0 ? 0 : rows.correction[r * Q::kScales + set];
          const F32 row_sum(rows.sum[r * Q::kScales + set]);
#pragma GCC unroll 4
          for (int i = 0; i < kParts; ++i) {
            F32 total = fma(Q::Dots::to_float(sum.part[set][i], correction),
                            scale[set][i] * row_scale, acc[r][i]);
            if constexpr (Format::kHasMinimum) total = fma(minimum[set][i], row_sum, total);
            acc[r][i] = total;
          }
        }
      });
}

/// result = one strip times the rows [row, row + kRows) of a block. Not in line: one copy serves
/// all kinds of outputs, so that less is compiled.
template <class Q, int kRows>
[[gnu::noinline]] void strip_dot(const uint8_t* strip, const QuantizedRows& rows, int64_t row,
                                 F32 (&result)[kRows][kParts]) {
  F32 acc[kRows][kParts];
  const int64_t step = rows.block_rows(row / kRowBlock * kRowBlock);
  RowGroups<Q> x(rows, rows.first_group(row));
  for (int64_t g = 0; g < rows.groups; strip += Q::Group::kBlockBytes) {
    const Factors<typename Q::Group> factors(strip);
    const uint8_t* group = strip + Q::Group::kFactorBytes;
    for (int i = 0; i < Q::Group::kGroups; ++i, ++g, group += Q::Group::kBytes, x.move(step)) {
      for (int at = 0; at < Q::Group::kBytes; at += 64) prefetch_l1(group + kPrefetchBytes + at);
      add_group<Q>(group, factors, x, acc);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) result[r][i] = acc[r][i];
  }
}

/// The product of the quantized rows with the weight, written to out.
template <class Q, class Out, bool kGated>
class Product {
 public:
  Product(const LinearParams& params, const QuantizedRows& rows)
      : p(params), rows_(rows), strip_bytes_(Q::Group::strip_bytes(params.in_features)) {}

  /// Not in line: one copy serves products with and without experts.
  [[gnu::noinline]] void multiply_tile(Share rows, Share strips) const {
    multiply_rows<kRowBlock>(strips, rows);
  }

 private:
  /// Multiplies kRows rows at a time, the remainder in smaller blocks.
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

/// Multiplies all rows, those of an expert with its weight. one_row: as shares_one_row().
template <class Q, class Out, bool kGated>
void multiply(const LinearParams& p, const QuantizedRows& rows, bool one_row, const Team& team) {
  const int64_t num_strips = (num_outputs(p) + kStripRows - 1) / kStripRows;
  if (p.num_experts == 0) {
    const Product<Q, Out, kGated> product(p, rows);
    for_each_tile(p.num_tokens, kTokenBlock, num_strips, kStripsPerTile, team,
                  [&](Share tokens, Share strips) { product.multiply_tile(tokens, strips); });
    return;
  }
  for_each_expert_tile(p, kTokenBlock, num_strips, kStripsPerTile, team,
                       [&](int64_t expert, Share tokens, Share strips) {
                         const Share all = expert_rows(p, expert);
                         const LinearParams part = expert_part(p, expert, all);
                         const QuantizedRows own = one_row ? rows : rows.of(all);
                         Product<Q, Out, kGated>(part, own).multiply_tile(
                             {tokens.begin - all.begin, tokens.end - all.begin}, strips);
                       });
}

template <class Format, int kBits>
void run(const LinearParams& p, const Team& team) {
  using Q = Operands<Format, Dots<Format, kBits>>;
  alignas(64) char copy[kPrivateBytes];
  const bool one_row = shares_one_row(p);
  LinearParams input = p;
  if (one_row) {
    input.num_tokens = 1;
    input.num_experts = 0;
    input.x_rows = nullptr;
  }
  const bool is_private =
      QuantizedRows::bytes(input, Q::Dots::kRowBytes, Q::kScales) <= kPrivateBytes;
  const QuantizedRows rows(input, Q::Dots::kRowBytes, Q::kScales, is_private ? copy : p.workspace);
  const Share share = is_private ? Share{0, input.num_tokens} : share_of(input.num_tokens, team);
  for (int64_t expert = 0; expert < num_groups(input); ++expert) {
    const Share all = expert_rows(input, expert);
    const Share own = {all.begin > share.begin ? all.begin : share.begin,
                       all.end < share.end ? all.end : share.end};
    if (own.begin >= own.end) continue;
    quantize_rows<typename Q::Dots::Inputs, Q::kScales, kBits>(
        expert_part(input, expert, all), rows.of(all), Q::kOffset,
        {own.begin - all.begin, own.end - all.begin});
  }
  if (!is_private) team.sync();
  dispatch_dtype<float, BF16>(p.out_dtype, [&]<class Out>() {
    if (p.silu_mul) {
      multiply<Q, Out, true>(p, rows, one_row, team);
    } else {
      multiply<Q, Out, false>(p, rows, one_row, team);
    }
  });
}

}  // namespace

void linear_fp8(const LinearParams& p, const Team& team);  // linear_fp8.cpp

void linear_packed(const LinearParams& p, const Team& team) {
  dispatch_format(p.format, [&]<class Format>() {
    if constexpr (HasFloatCodes<Format>) {
      linear_fp8(p, team);
    } else {
      dispatch_int<8, 9, 16>(p.activation_bits, [&]<int kBits>() { run<Format, kBits>(p, team); });
    }
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
