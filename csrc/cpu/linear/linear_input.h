// SPDX-License-Identifier: Apache-2.0
// Input of a linear: rows of x, normed if there is a norm, rounded to integers for the products.
#pragma once

#include "common/dispatch.h"
#include "cpu/linear/experts.h"
#include "cpu/vec/mask.h"
#include "cpu/vec/row.h"
#include "cpu/vec/strip.h"
#include "params.h"

namespace lampo::cpu::LAMPO_ISA {

/// Calls fn(scaled) with scaled(i, n) = elements [i, i + n) of the row, times weight / rms(row).
template <class T, class W, class Fn>
static inline void with_normed_row(const T* x, const W* weight, int64_t size, float eps, Fn&& fn) {
  F32 squares;
  for_each_vector(size, [&](int64_t i, int n) {
    const F32 value = load_n(x + i, n);
    squares = fma(value, value, squares);
  });
  const float mean = reduce_add(squares) / static_cast<float>(size);
  const F32 scale(1.0f / __builtin_sqrtf(mean + eps));
  fn([=](int64_t i, int n) { return load_n(x + i, n) * scale * load_n(weight + i, n); });
}

/// Calls fn(read) with read(i, n) = elements [i, i + n) of the token's row of x, after the norm.
template <class T, class Fn>
static inline void with_input_row(const LinearParams& p, int64_t token, Fn&& fn) {
  const T* x = static_cast<const T*>(p.x) + x_row(p, token) * p.stride_x_token;
  if (p.norm_weight == nullptr) return fn([=](int64_t i, int n) { return load_n(x + i, n); });
  dispatch_dtype<float, BF16>(p.norm_dtype, [&]<class W>() {
    with_normed_row(x, static_cast<const W*>(p.norm_weight), p.in_features, p.norm_eps, fn);
  });
}

/// Tokens that one pass over a strip multiplies.
inline constexpr int kRowBlock = 16;

/// Rows of x as integers q, in groups of 32 inputs with a scale: x ~ scale q. Activation bits:
///   8    q is an int8, scale = max|x| / 127.
///   16   q has 16 bits: twice the work, 1/256 of the error.
///   9    (the mean) q has 16 bits in one word of four inputs, the outlier word that holds max|x|,
///        and 8 bits elsewhere; scale is that of the other 28 inputs. Activations have a few large
///        channels, which so do not coarsen their neighbours.
/// The layout of a group's q is that of the dot products (vec/strip.h). Rows are stored in blocks
/// of kRowBlock, the last one shorter: a block of n rows is [groups, n, ...].
struct QuantizedRows {
  int8_t* quants;  // quant_bytes per group
  float* scale;
  float* sum;           // [num_sums] per group: scale * sum of q
  int32_t* correction;  // [num_sums] per group: -offset * sum of q
  int64_t num_rows;
  int64_t groups;
  int64_t quant_bytes;
  int64_t num_sums;  // parts of a group with sums of their own: 1 or 2

  static int64_t bytes(const LinearParams& p, int64_t quant_bytes, int64_t num_sums) {
    return p.num_tokens * (p.in_features / kGroupSize) * (quant_bytes + 4 + 8 * num_sums);
  }

  QuantizedRows(const LinearParams& p, int64_t bytes_of_group, int64_t sums_of_group, void* memory)
      : num_rows(p.num_tokens),
        groups(p.in_features / kGroupSize),
        quant_bytes(bytes_of_group),
        num_sums(sums_of_group) {
    const int64_t count = num_rows * groups;
    quants = static_cast<int8_t*>(memory);
    scale = reinterpret_cast<float*>(quants + count * quant_bytes);
    sum = scale + count;
    correction = reinterpret_cast<int32_t*>(sum + count * num_sums);
  }

  /// Some of the rows, with blocks of their own.
  QuantizedRows of(Share rows) const {
    QuantizedRows part = *this;
    part.quants += rows.begin * groups * quant_bytes;
    part.scale += rows.begin * groups;
    part.sum += rows.begin * groups * num_sums;
    part.correction += rows.begin * groups * num_sums;
    part.num_rows = rows.end - rows.begin;
    return part;
  }
  /// Rows of the block that begins at `row`, a multiple of kRowBlock.
  int64_t block_rows(int64_t row) const {
    return num_rows - row < kRowBlock ? num_rows - row : kRowBlock;
  }
  /// Number of a row's first group; the next one's is larger by block_rows().
  int64_t first_group(int64_t row) const {
    return row / kRowBlock * kRowBlock * groups + row % kRowBlock;
  }
};

/// Quantization of a group: q = 127 stands for `unit`; `outlier` is its outlier word.
struct GroupScale {
  float unit;
  int outlier = 0;
};

/// |x| of vector i of a group. read(i, n): elements [i, i + n) of the row.
template <class Read>
static inline F32 magnitude(int64_t group, int i, Read&& read) {
  const F32 value = read(group * kGroupSize + i * F32::kWidth, F32::kWidth);
  return max(value, -value);
}

template <class Read>
static inline float absmax_of(int64_t group, Read&& read) {
  F32 largest;
  for (int i = 0; i < kGroupVectors; ++i) largest = max(largest, magnitude(group, i, read));
  return reduce_max(largest);
}

/// Largest |x| of every word of a group.
struct WordMaxima {
  float value[kGroupWords];

  template <class Read>
  void read_from(int64_t group, Read&& read) {
    for (int i = 0; i < kGroupVectors; ++i) {
      store_quad_max(value + i * F32::kWidth / 4, magnitude(group, i, read));
    }
  }

  GroupScale scale() const {
    constexpr int kCount = kGroupWords < F32::kWidth ? kGroupWords : F32::kWidth;
    const auto reduce = [&](auto&& part) {
      F32 largest;
      for (int i = 0; i < kGroupWords; i += kCount) {
        largest = max(largest, part(i, load_n(value + i, kCount)));
      }
      return reduce_max(largest);
    };
    const float absmax = reduce([](int, F32 v) { return v; });
    uint32_t found = 0;
    for (int i = 0; i < kGroupWords; i += kCount) {
      found |= lane_bits(equal(load_n(value + i, kCount), F32(absmax))) << i;
    }
    // If two words have the maximum, it is also that of the others, and no word has high bytes.
    found &= 0u - found;
    const float others =
        reduce([&](int i, F32 v) { return blend(mask_from_bits(found >> i), F32{}, v); });
    const float unit = absmax / 256.0f;
    return {others > unit ? others : unit, __builtin_ctz(found | 1u << (kGroupWords - 1))};
  }
};

/// Quantizes a group into group number `index` of rows.
template <class Inputs, int kSums, int kBits, class Read>
static inline void quantize_group(const QuantizedRows& rows, int64_t index, int offset,
                                  int64_t group, GroupScale scale, Read&& read) {
  constexpr float kLargest = kBits == 8 ? 127.0f : 127.0f * 256.0f;
  const F32 inverse(scale.unit > 0.0f ? 127.0f / scale.unit : 0.0f);
  F32 quants[kGroupVectors], sum[kSums];  // of integers below 2^24: exact
  for (int i = 0; i < kGroupVectors; ++i) {
    const F32 scaled = read(group * kGroupSize + i * F32::kWidth, F32::kWidth) * inverse;
    // min and max keep a NaN that is their second operand.
    quants[i] = round_even(min(F32(kLargest), max(F32(-kLargest), scaled)));
    F32& part = sum[i * kSums / kGroupVectors];
    part = part + quants[i];
  }
  float total[kSums], all = 0.0f;
  for (int i = 0; i < kSums; ++i) {
    total[i] = reduce_add(sum[i]);
    all += total[i];
  }
  rows.scale[index] = scale.unit / 127.0f;
  if (__builtin_isnan(all)) {  // x has a NaN or an infinity: the scale passes it on
    rows.scale[index] = all;
    for (float& part : total) part = 0.0f;
    for (F32& quant : quants) quant = F32{};
  }
  Inputs::store(rows.quants + index * Inputs::kRowBytes, quants, scale.outlier);
  for (int i = 0; i < kSums; ++i) {
    rows.sum[index * kSums + i] = rows.scale[index] * total[i];
    rows.correction[index * kSums + i] = -offset * static_cast<int32_t>(total[i]);
  }
}

/// Quantizes rows of x. offset: excess of the weight's codes, as they are multiplied, over their
/// values. Not in line: one copy serves all formats.
template <class Inputs, int kSums, int kBits>
[[gnu::noinline]] static void quantize_rows(const LinearParams& p, const QuantizedRows& rows,
                                            int offset, Share tokens) {
  // Three short loops, not one long: the CPU then overlaps the latencies of many groups.
  constexpr int64_t kBatch = 64;
  WordMaxima words[kBatch];
  GroupScale scales[kBatch];
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
      const int64_t first_group = rows.first_group(token);
      const int64_t step = rows.block_rows(token / kRowBlock * kRowBlock);
      with_input_row<T>(p, token, [&](auto&& read) {
        for (int64_t first = 0; first < rows.groups; first += kBatch) {
          const int64_t count = rows.groups - first < kBatch ? rows.groups - first : kBatch;
          if (kBits == 9) {
            for (int64_t i = 0; i < count; ++i) words[i].read_from(first + i, read);
            for (int64_t i = 0; i < count; ++i) scales[i] = words[i].scale();
          } else {
            for (int64_t i = 0; i < count; ++i) {
              scales[i] = {absmax_of(first + i, read) / (kBits == 8 ? 1.0f : 256.0f)};
            }
          }
          for (int64_t i = 0; i < count; ++i) {
            const int64_t g = first + i;
            quantize_group<Inputs, kSums, kBits>(rows, first_group + g * step, offset, g, scales[i],
                                                 read);
          }
        }
      });
    }
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
