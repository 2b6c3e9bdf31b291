// SPDX-License-Identifier: Apache-2.0
// out[t][n] = sum_k x[t][k] w[n][k] + bias[n] on packed 4- and 8-bit weights (weight_format.h).
//
// x is quantized once per call, in groups of 32 along k: x ~ dx q. With 8 activation bits q is an
// int8 and dx = max|x| / 127; with 16 it is 256 hi + lo, two planes of int8, for twice the dot
// products and 1/250 of the error. A group of a weight row then contributes
//   dw dx (sum qw qx - offset sum qx) + m dx sum qx,      offset 8 for Q4_0, m for Q4_1 only
// where the sums are integers, hence exact, and both sums over qx use the quantized x, so that the
// error is that of x under the real weights. Groups are added in order of k, in f32, in two fused
// steps: this one definition holds for any number of tokens, threads or tiles, so a token's result
// does not depend on what it is batched with.
//
// Work: a thread owns a range of strips (16 output rows; lane r of a register is row r). For each
// block of up to kMaxRows tokens it walks a strip once: unpacked quants stay in registers and serve
// every token of the block.
// Bytes: weights once per kMaxRows tokens (18, 20 or 34 bytes per 32 weights), x and out once.
// FLOPs: 2 per weight and token, 32 multiply-adds per instruction with VNNI. Below 8 tokens bound
// by memory, above by integer throughput. Limits: in_features a multiple of 32.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/row.h"
#include "cpu/vec/strip.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int kMaxRows = 8;

/// The quantized activations, in the caller's workspace.
struct QuantizedRows {
  int8_t* quants;  // [num_tokens, groups, planes, 32]: q, or hi and lo
  float* scale;    // [num_tokens, groups]: dx
  float* sum;      // [num_tokens, groups]: dx * sum of q
  int32_t* total;  // [num_tokens, groups]: sum of q
};

QuantizedRows carve(const LinearPackedParams& p) {
  const int64_t groups = p.in_features / kGroupSize;
  char* at = static_cast<char*>(p.workspace);
  QuantizedRows rows{};
  rows.quants = reinterpret_cast<int8_t*>(at);
  at += p.num_tokens * p.in_features * (p.activation_bits / 8);
  rows.scale = reinterpret_cast<float*>(at);
  at += p.num_tokens * groups * 4;
  rows.sum = reinterpret_cast<float*>(at);
  at += p.num_tokens * groups * 4;
  rows.total = reinterpret_cast<int32_t*>(at);
  return rows;
}

/// The nearest of -127 .. 127. An infinity or NaN gets some int8 too; the scale carries it on.
inline F32 round_to_int8(F32 x) { return round_even(min(max(x, F32(-127.0f)), F32(127.0f))); }

template <class T, int kPlanes>
void quantize_groups(const LinearPackedParams& p, const QuantizedRows& rows, Share share) {
  const int64_t groups = p.in_features / kGroupSize;
  for (int64_t at = share.begin; at < share.end; ++at) {
    const int64_t token = at / groups;
    const T* x = static_cast<const T*>(p.x) + token * p.stride_x_token + at % groups * kGroupSize;
    constexpr int kVectors = kGroupSize / F32::kWidth;
    F32 value[kVectors];
    F32 largest;
    for (int i = 0; i < kVectors; ++i) {
      value[i] = load(x + i * F32::kWidth);
      largest = max(largest, max(value[i], -value[i]));
    }
    const float absmax = reduce_max(largest);
    const F32 inverse(absmax > 0.0f ? 127.0f / absmax : 0.0f);
    float rounded[kPlanes][kGroupSize];
    for (int i = 0; i < kVectors; ++i) {
      const F32 scaled = value[i] * inverse;
      const F32 high = round_to_int8(scaled);
      store(rounded[0] + i * F32::kWidth, high);
      if constexpr (kPlanes == 2) {
        store(rounded[1] + i * F32::kWidth, round_to_int8((scaled - high) * F32(256.0f)));
      }
    }
    int8_t* quants = rows.quants + at * kPlanes * kGroupSize;
    int32_t total = 0;
    for (int plane = 0; plane < kPlanes; ++plane) {
      int32_t sum = 0;
      for (int i = 0; i < kGroupSize; ++i) {
        const int32_t q = static_cast<int32_t>(rounded[plane][i]);
        quants[plane * kGroupSize + i] = static_cast<int8_t>(q);
        sum += q;
      }
      total = total * 256 + sum;
    }
    const float scale = absmax / (kPlanes == 1 ? 127.0f : 127.0f * 256.0f);
    rows.scale[at] = scale;
    rows.sum[at] = scale * static_cast<float>(total);
    rows.total[at] = total;
  }
}

/// Asks for a group's share of the next strip. Strips are too short for the hardware prefetcher,
/// which starts anew with each page.
/// 10 GB/s without, 24 with, per thread, on the LM head of a 135M model in Q4_1.
inline void prefetch_group(const uint8_t* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 3);
}

/// start + sum over a block's 32 inputs of w q, for 16 rows at once.
template <bool kNibbles>
inline I32x16 block_dot(const Words (&w)[8], const int8_t* q, int32_t start) {
  I32x16 even = broadcast16(start);
  I32x16 odd = broadcast16(0);
  for (int i = 0; i < 8; i += 2) {
    if constexpr (kNibbles) {
      even = dot_nibbles(even, w[i], q + 4 * i);
      odd = dot_nibbles(odd, w[i + 1], q + 4 * i + 4);
    } else {
      even = dot_bytes(even, w[i], q + 4 * i);
      odd = dot_bytes(odd, w[i + 1], q + 4 * i + 4);
    }
  }
  return even + odd;
}

/// One strip times kRows tokens.
template <WeightFormat kFormat, int kPlanes, int kRows>
inline void strip_dot(const StripLayout& layout, const uint8_t* strip, const QuantizedRows& rows,
                      int64_t token, F32x16 (&acc)[kRows]) {
  constexpr bool kNibbles = kFormat != WeightFormat::kQ8_0;
  constexpr int kBias = kFormat == WeightFormat::kQ4_0   ? 8
                        : kFormat == WeightFormat::kQ8_0 ? kSignedDotBias
                                                         : 0;
  constexpr int kWords = kNibbles ? 4 : 8;
  constexpr int kGroupBytes = kWords * 64 + (kFormat == WeightFormat::kQ4_1 ? 64 : 32);
  const int64_t groups = layout.groups;
  const F16* d = reinterpret_cast<const F16*>(strip + layout.scale_offset);
  const F16* m = reinterpret_cast<const F16*>(strip + layout.min_offset);
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* words = strip + g * kWords * 64;
    prefetch_group(strip + layout.strip_bytes + g * kGroupBytes, kGroupBytes);
    Words w[8];
    if constexpr (kNibbles) {
      for (int i = 0; i < 4; ++i) {
        const Words both = load_words(words + i * 64);
        w[i] = low_nibbles(both);
        w[i + 4] = high_nibbles(both);
      }
    } else {
      for (int i = 0; i < 8; ++i) w[i] = signed_bytes(load_words(words + i * 64));
    }
    const F32x16 scale = load16(d + g * kStripRows);
    F32x16 minimum;
    if constexpr (kFormat == WeightFormat::kQ4_1) minimum = load16(m + g * kStripRows);
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (token + r) * groups + g;
      const int8_t* q = rows.quants + at * kPlanes * kGroupSize;
      const int32_t start = kBias == 0 ? 0 : -kBias * rows.total[at];
      I32x16 dot;
      if constexpr (kPlanes == 1) {
        dot = block_dot<kNibbles>(w, q, start);
      } else {
        dot =
            times256(block_dot<kNibbles>(w, q, 0)) + block_dot<kNibbles>(w, q + kGroupSize, start);
      }
      acc[r] = fma(to_float(dot), scale * F32(rows.scale[at]), acc[r]);
      if constexpr (kFormat == WeightFormat::kQ4_1) {
        acc[r] = fma(minimum, F32(rows.sum[at]), acc[r]);
      }
    }
  }
}

template <class Out>
void write_strip(const LinearPackedParams& p, int64_t token, int64_t row, F32x16 value) {
  const int64_t left = p.out_features - row;
  Out* out = static_cast<Out*>(p.out) + token * p.stride_out_token + row;
  for (int i = 0; i < F32x16::kParts; ++i) {
    const int64_t at = i * F32::kWidth;
    const int64_t n = left - at < F32::kWidth ? left - at : F32::kWidth;
    if (n <= 0) return;
    F32 v = value.part[i];
    if (p.bias != nullptr) {
      dispatch_dtype<float, BF16>(p.bias_dtype, [&]<class B>() {
        v = v + load_n(static_cast<const B*>(p.bias) + row + at, static_cast<int>(n));
      });
    }
    store_n(out + at, v, static_cast<int>(n));
  }
}

template <WeightFormat kFormat, int kPlanes, class Out, int kRows>
void multiply(const LinearPackedParams& p, const StripLayout& layout, const QuantizedRows& rows,
              Share strips, int64_t token) {
  for (int64_t s = strips.begin; s < strips.end; ++s) {
    F32x16 acc[kRows] = {};
    strip_dot<kFormat, kPlanes, kRows>(
        layout, static_cast<const uint8_t*>(p.weight) + s * layout.strip_bytes, rows, token, acc);
    for (int r = 0; r < kRows; ++r) write_strip<Out>(p, token + r, s * kStripRows, acc[r]);
  }
}

template <WeightFormat kFormat, int kPlanes, class Out>
void run(const LinearPackedParams& p, const QuantizedRows& rows, const Team& team) {
  const StripLayout layout = strip_layout(kFormat, p.in_features);
  const Share mine = share_of((p.out_features + kStripRows - 1) / kStripRows, team);
  // With many tokens a few strips at a time stay in L1 while all tokens pass by.
  constexpr int64_t kStripsPerTile = 2;
  for (int64_t first = mine.begin; first < mine.end; first += kStripsPerTile) {
    Share strips{first, first + kStripsPerTile < mine.end ? first + kStripsPerTile : mine.end};
    if (p.num_tokens <= kMaxRows) strips.end = mine.end;  // one pass over the weights
    int64_t token = 0;
    for (; token + kMaxRows <= p.num_tokens; token += kMaxRows) {
      multiply<kFormat, kPlanes, Out, kMaxRows>(p, layout, rows, strips, token);
    }
    for (int64_t left = p.num_tokens - token; left > 0; left = p.num_tokens - token) {
      if (left >= 4) {
        multiply<kFormat, kPlanes, Out, 4>(p, layout, rows, strips, token);
        token += 4;
      } else if (left >= 2) {
        multiply<kFormat, kPlanes, Out, 2>(p, layout, rows, strips, token);
        token += 2;
      } else {
        multiply<kFormat, kPlanes, Out, 1>(p, layout, rows, strips, token);
        token += 1;
      }
    }
    if (strips.end == mine.end) break;
  }
}

}  // namespace

void linear_packed(const LinearPackedParams& p, const Team& team) {
  const QuantizedRows rows = carve(p);
  const Share groups = share_of(p.num_tokens * (p.in_features / kGroupSize), team);
  dispatch_int<8, 16>(p.activation_bits, [&]<int kBits>() {
    constexpr int kPlanes = kBits / 8;
    dispatch_dtype<float, BF16>(p.dtype,
                                [&]<class T>() { quantize_groups<T, kPlanes>(p, rows, groups); });
    team.sync();
    dispatch_dtype<float, BF16>(p.out_dtype, [&]<class Out>() {
      switch (p.format) {
        case WeightFormat::kQ4_0:
          return run<WeightFormat::kQ4_0, kPlanes, Out>(p, rows, team);
        case WeightFormat::kQ4_1:
          return run<WeightFormat::kQ4_1, kPlanes, Out>(p, rows, team);
        case WeightFormat::kQ8_0:
          return run<WeightFormat::kQ8_0, kPlanes, Out>(p, rows, team);
      }
    });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
