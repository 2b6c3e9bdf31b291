// SPDX-License-Identifier: Apache-2.0
// The beginning of a linear: a row of x, normed where that is wanted, as the products take it.
#pragma once

#include "common/dispatch.h"
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
  const T* x = static_cast<const T*>(p.x) + token * p.stride_x_token;
  if (p.norm_weight == nullptr) return fn([=](int64_t i, int n) { return load_n(x + i, n); });
  dispatch_dtype<float, BF16>(p.norm_dtype, [&]<class W>() {
    with_normed_row(x, static_cast<const W*>(p.norm_weight), p.in_features, p.norm_eps, fn);
  });
}

/// Tokens that the integer products take together.
inline constexpr int kRowBlock = 16;

/// The rows of x as integers, in groups of 32 along the inputs: x ~ scale q. With 8 activation bits
/// q is an int8, and scale = max|x| / 127. With 16 it has 16 bits, for twice the work and 1/256 of
/// the error. With 9, the mean, one word of four q has 16 bits, the one with max|x|, and scale is
/// that of the others: activations have a few large channels, and a group's other 28 inputs should
/// not be rounded on account of one of those. A group's q lie as the dot products want them
/// (vec/strip.h).
/// Rows come in blocks of kRowBlock, the last with fewer: a block of n rows is [groups, n, ...].
struct QuantizedRows {
  int8_t* quants;  // quant_bytes each
  float* scale;
  float* sum;      // scale * sum of q
  int32_t* start;  // -offset * sum of q
  int64_t num_rows;
  int64_t groups;
  int64_t quant_bytes;

  static int64_t bytes(const LinearParams& p, int64_t quant_bytes) {
    return p.num_tokens * (p.in_features / kGroupSize) * (quant_bytes + 12);
  }

  QuantizedRows(const LinearParams& p, int64_t bytes_of_group, void* memory)
      : num_rows(p.num_tokens), groups(p.in_features / kGroupSize), quant_bytes(bytes_of_group) {
    const int64_t count = num_rows * groups;
    quants = static_cast<int8_t*>(memory);
    scale = reinterpret_cast<float*>(quants + count * quant_bytes);
    sum = scale + count;
    start = reinterpret_cast<int32_t*>(sum + count);
  }

  /// The same, with place 0 at `place`.
  QuantizedRows from(int64_t place) const {
    QuantizedRows part = *this;
    part.quants += place * quant_bytes;
    part.scale += place;
    part.sum += place;
    part.start += place;
    return part;
  }
  /// Rows of the block that begins at `row`, a multiple of kRowBlock.
  int64_t block_rows(int64_t row) const {
    return num_rows - row < kRowBlock ? num_rows - row : kRowBlock;
  }
  /// The place of a row's first group; its next group is block_rows() places on.
  int64_t place(int64_t row) const {
    return row / kRowBlock * kRowBlock * groups + row % kRowBlock;
  }
};

/// What the integers of a group are made by: 127 stands for `unit`. `wide`: its word of 16 bits.
struct GroupScale {
  float unit;
  int wide = 0;
};

/// read(i, n): elements [i, i + n) of the row.
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

/// Each word's largest |x|.
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
    // Of two words the same: then the others have that maximum too, and no word has highs.
    found &= 0u - found;
    const float others =
        reduce([&](int i, F32 v) { return blend(mask_from_bits(found >> i), F32{}, v); });
    const float unit = absmax / 256.0f;
    return {others > unit ? others : unit, __builtin_ctz(found | 1u << (kGroupWords - 1))};
  }
};

/// Quantizes a group into its place; Dots: of strip.h.
template <class Dots, int kBits, class Read>
static inline void quantize_group(const QuantizedRows& rows, int64_t at, int offset, int64_t group,
                                  GroupScale scale, Read&& read) {
  constexpr float kLargest = kBits == 8 ? 127.0f : 127.0f * 256.0f;
  const F32 inverse(scale.unit > 0.0f ? 127.0f / scale.unit : 0.0f);
  F32 quants[kGroupVectors], sum;  // of integers below 2^24: exact
  for (int i = 0; i < kGroupVectors; ++i) {
    const F32 scaled = read(group * kGroupSize + i * F32::kWidth, F32::kWidth) * inverse;
    // As the second operand a NaN stays one.
    quants[i] = round_even(min(F32(kLargest), max(F32(-kLargest), scaled)));
    sum = sum + quants[i];
  }
  float total = reduce_add(sum);
  rows.scale[at] = scale.unit / 127.0f;
  if (__builtin_isnan(total)) {  // of a NaN or an infinity: the scale carries it on
    rows.scale[at] = total;
    total = 0.0f;
    for (F32& quant : quants) quant = F32{};
  }
  Dots::store(rows.quants + at * Dots::kRowBytes, quants, scale.wide);
  rows.sum[at] = rows.scale[at] * total;
  rows.start[at] = -offset * static_cast<int32_t>(total);
}

/// `offset`: what the unsigned quants of the weight are too large by.
template <class Dots, int kBits>
static inline void quantize_rows(const LinearParams& p, const QuantizedRows& rows, int offset,
                                 Share tokens) {
  // Short loops in place of one: so the CPU works on many groups at a time.
  constexpr int64_t kTogether = 64;
  WordMaxima words[kTogether];
  GroupScale scales[kTogether];
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
      const int64_t place = rows.place(token);
      const int64_t step = rows.block_rows(token / kRowBlock * kRowBlock);
      with_input_row<T>(p, token, [&](auto&& read) {
        for (int64_t first = 0; first < rows.groups; first += kTogether) {
          const int64_t count = rows.groups - first < kTogether ? rows.groups - first : kTogether;
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
            quantize_group<Dots, kBits>(rows, place + g * step, offset, g, scales[i], read);
          }
        }
      });
    }
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
