// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on packed 4- and 8-bit weights (weight_format.h), and what may follow
// (linear_output.h).
//
// x is quantized once per call (linear_input.h). A group of 32 of a weight row then contributes
//   dw dx (sum qw qx - offset sum qx) + m dx sum qx,      offset 8 for Q4_0, m for Q4_1 only
// where the sums are integers, hence exact, and both sums over qx use the quantized x, so that the
// error is that of x under the real weights. Groups are added in order of k, in f32, in two fused
// steps: this one definition holds for any number of tokens, threads or tiles, so a token's result
// does not depend on what it is batched with.
//
// Work: a thread owns a range of strips (16 output rows; lane r of a register is row r). For each
// block of up to kRowBlock tokens it walks a strip once: unpacked quants stay in registers and
// serve every token of the block. A few strips at a time stay in L1 while all tokens pass by.
// Bytes: weights once (18, 20 or 34 bytes per 32 weights), x once per strip tile, out once.
// FLOPs: 2 per weight and token, 32 multiply-adds per instruction with VNNI. Below 8 tokens bound
// by memory, above by integer throughput. Limits: in_features a multiple of 32.
//
// Measured on two cores of a shared AMD EPYC (Zen 4, 3.7 GHz: 473 int8 GOP/s a core, of which the
// scales leave 343 for Q4_1; reads 28-34 GB/s), Q4_1, the layers of a 135M model:
//   decode, GB/s on two threads: scales at the end of a strip 13-18, beside their quants 31-35
//   prefill, GOP/s on one thread: 302; rows of a block side by side (one stream of x) 305; two
//   strips at a time 227 (fewer loads, but sums that no longer fit the registers); one chain of
//   dot products a row in place of two 230; 2048 tokens 270, by blocks of 256 300
#include "cpu/kernel_table.h"
#include "cpu/linear_input.h"
#include "cpu/linear_output.h"
#include "cpu/vec/strip.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// Quantized rows that stay in the second-level cache, and strips that stay in the first, while
/// they pass each other.
constexpr int64_t kTokenBlock = 256;
constexpr int64_t kStripsPerTile = 2;
/// How far ahead of the dot products weights are asked for.
constexpr int kPrefetchBytes = 4096;
/// So few quantized rows each thread makes for itself: sooner done than a barrier is passed.
constexpr int64_t kOwnBytes = 4096;

/// What the unsigned quants are too large by.
constexpr int offset_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kQ4_0:
      return 8;
    case WeightFormat::kQ4_1:
      return 0;
    case WeightFormat::kQ8_0:
      return kSignedDotBias;
  }
  return 0;
}

/// A group of a strip in registers.
template <WeightFormat kFormat>
struct Group {
  static constexpr StripLayout kLayout = strip_layout(kFormat, kGroupSize);
  static constexpr bool kNibbles = kFormat != WeightFormat::kQ8_0;

  Words words[8];
  F32x16 scale;
  F32x16 minimum;

  explicit Group(const uint8_t* at) {
    for (int i = 0; i < kLayout.group_bytes; i += 64) prefetch_l1(at + kPrefetchBytes + i);
    if constexpr (kNibbles) {
      for (int i = 0; i < 4; ++i) {
        const Words both = load_words(at + i * 64);
        words[i] = low_nibbles(both);
        words[i + 4] = high_nibbles(both);
      }
    } else {
      for (int i = 0; i < 8; ++i) words[i] = unsigned_bytes(load_words(at + i * 64));
    }
    scale = load16(reinterpret_cast<const F16*>(at + kLayout.scale_offset));
    if constexpr (kLayout.has_min) {
      minimum = load16(reinterpret_cast<const F16*>(at + kLayout.min_offset));
    }
  }

  /// acc + the group's products with place `at` of the rows.
  template <int kPlanes>
  F32x16 add_products(const QuantizedRows& rows, int64_t at, F32x16 acc) const {
    const int8_t* q = rows.quants + at * kPlanes * kGroupSize;
    const int32_t start = offset_of(kFormat) == 0 ? 0 : rows.start[at];
    I32x16 sum;
    if constexpr (kPlanes == 1) {
      sum = dot(q, start);
    } else {
      sum = times256(dot(q, 0)) + dot(q + kGroupSize, start);
    }
    acc = fma(to_float(sum), scale * F32(rows.scale[at]), acc);
    if constexpr (kLayout.has_min) acc = fma(minimum, F32(rows.sum[at]), acc);
    return acc;
  }

  I32x16 dot(const int8_t* q, int32_t start) const {
    return kNibbles ? dot_nibbles(words, q, start) : dot_bytes(words, q, start);
  }
};

/// One strip times the rows [row, row + kRows) of a block.
template <WeightFormat kFormat, int kPlanes, int kRows>
inline void strip_dot(const uint8_t* strip, const QuantizedRows& rows, int64_t row,
                      F32x16 (&acc)[kRows]) {
  const int64_t step = rows.block_rows(row / kRowBlock * kRowBlock);
  const QuantizedRows first = rows.from(rows.place(row), kPlanes);
  for (int64_t g = 0; g < rows.groups; ++g) {
    const QuantizedRows here = first.from(g * step, kPlanes);
    const Group<kFormat> group(strip + g * Group<kFormat>::kLayout.group_bytes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[r] = group.template add_products<kPlanes>(here, r, acc[r]);
  }
}

template <WeightFormat kFormat, int kPlanes, class Out, bool kGated>
class Product {
 public:
  Product(const LinearParams& params, const QuantizedRows& rows)
      : p(params),
        rows_(rows),
        strip_bytes_(strip_layout(kFormat, params.in_features).strip_bytes) {}

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
    const int64_t half = num_outputs(p) / kStripRows;
    for (int64_t s = strips.begin; s < strips.end; ++s) {
      F32x16 acc[kRows];
      strip_dot<kFormat, kPlanes>(weight + s * strip_bytes_, rows_, row, acc);
      if constexpr (kGated) {
        F32x16 up[kRows];
        strip_dot<kFormat, kPlanes>(weight + (half + s) * strip_bytes_, rows_, row, up);
        for (int r = 0; r < kRows; ++r) write(row + r, s * kStripRows, acc[r], up[r]);
      } else {
        for (int r = 0; r < kRows; ++r) write(row + r, s * kStripRows, acc[r], acc[r]);
      }
    }
  }

  void write(int64_t token, int64_t row, const F32x16& value, const F32x16& up) const {
    const int64_t left = num_outputs(p) - row;
    for (int i = 0; i < F32x16::kParts; ++i) {
      const int64_t at = i * F32::kWidth;
      const int64_t n = left - at < F32::kWidth ? left - at : F32::kWidth;
      if (n <= 0) return;
      write_outputs<Out>(p, token, row + at, static_cast<int>(n), value.part[i], up.part[i]);
    }
  }

  const LinearParams& p;
  const QuantizedRows& rows_;
  const int64_t strip_bytes_;
};

template <WeightFormat kFormat, int kPlanes>
void run(const LinearParams& p, const Team& team) {
  alignas(64) char own[kOwnBytes];
  const bool fits = QuantizedRows::bytes(p) <= kOwnBytes;
  const QuantizedRows rows(p, fits ? own : p.workspace);
  quantize_rows<kPlanes>(p, rows, offset_of(kFormat),
                         fits ? Share{0, p.num_tokens} : share_of(p.num_tokens, team));
  if (!fits) team.sync();
  dispatch_dtype<float, BF16>(p.out_dtype, [&]<class Out>() {
    if (p.silu_mul) {
      Product<kFormat, kPlanes, Out, true>(p, rows).run(team);
    } else {
      Product<kFormat, kPlanes, Out, false>(p, rows).run(team);
    }
  });
}

}  // namespace

void linear_packed(const LinearParams& p, const Team& team) {
  dispatch_int<8, 16>(p.activation_bits, [&]<int kBits>() {
    switch (p.format) {
      case WeightFormat::kQ4_0:
        return run<WeightFormat::kQ4_0, kBits / 8>(p, team);
      case WeightFormat::kQ4_1:
        return run<WeightFormat::kQ4_1, kBits / 8>(p, team);
      case WeightFormat::kQ8_0:
        return run<WeightFormat::kQ8_0, kBits / 8>(p, team);
    }
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
