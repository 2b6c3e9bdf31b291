// SPDX-License-Identifier: Apache-2.0
// The beginning of a linear: a row of x, normed where that is wanted, as the products take it.
#pragma once

#include "common/dispatch.h"
#include "cpu/vec/row.h"
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
inline constexpr int kRowBlock = 8;
/// Vectors of a group.
inline constexpr int kGroupVectors = kGroupSize / F32::kWidth;
/// What 12 activation bits call large.
inline constexpr float kFelt = 3.0f;

/// The rows of x as integers, in groups of 32 along the inputs. With 8 activation bits x ~ scale q,
/// q an int8 and scale = max|x| / 127; with 16, q = 256 high + low, both int8, for about twice the
/// work and 1/250 of the error. With 12 a group has a low only where its error would be felt
/// (felt_above). Activations have a few large channels, so those are few groups, and mostly the
/// same in all rows; without one that has it, its product is left out. A group's q lie as the dot
/// products want them (vec/strip.h).
/// Rows come in blocks of kRowBlock, the last with fewer: a block of n rows is [groups, n, ...].
struct QuantizedRows {
  int8_t* quants;  // quant_bytes each
  float* scale;
  float* sum;      // scale * sum of q
  int32_t* start;  // -offset * sum of q
  bool* has_low;
  int64_t num_rows;
  int64_t groups;
  int64_t quant_bytes;

  static int64_t bytes(const LinearParams& p, int64_t quant_bytes) {
    return p.num_tokens * (p.in_features / kGroupSize) * (quant_bytes + 13);
  }

  QuantizedRows(const LinearParams& p, int64_t bytes_of_group, void* memory)
      : num_rows(p.num_tokens), groups(p.in_features / kGroupSize), quant_bytes(bytes_of_group) {
    const int64_t count = num_rows * groups;
    quants = static_cast<int8_t*>(memory);
    scale = reinterpret_cast<float*>(quants + count * quant_bytes);
    sum = scale + count;
    start = reinterpret_cast<int32_t*>(sum + count);
    has_low = reinterpret_cast<bool*>(start + count);
  }

  /// The same, with place 0 at `place`.
  QuantizedRows from(int64_t place) const {
    QuantizedRows part = *this;
    part.quants += place * quant_bytes;
    part.scale += place;
    part.sum += place;
    part.start += place;
    part.has_low += place;
    return part;
  }
  /// Whether any of the first kRows places has a low.
  template <int kRows>
  bool any_low() const {
    static_assert(kRows <= 8);
    uint64_t flags = 0;
    memcpy(&flags, has_low, kRows);
    return flags != 0;
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

/// The nearest of -127 .. 127. An infinity or NaN gets some int8 too; the scale carries it on.
static inline F32 round_to_int8(F32 x) {
  return round_even(min(max(x, F32(-127.0f)), F32(127.0f)));
}

/// A group of a row of x, and its largest |x|.
struct InputGroup {
  F32 value[kGroupVectors];
  float absmax;

  template <class Read>
  InputGroup(int64_t group, Read&& read) {
    F32 largest;
    for (int i = 0; i < kGroupVectors; ++i) {
      value[i] = read(group * kGroupSize + i * F32::kWidth, F32::kWidth);
      largest = max(largest, max(value[i], -value[i]));
    }
    absmax = reduce_max(largest);
  }
};

/// What the max|x| squared of a group must exceed to be worth a low: kFelt times the mean over the
/// row's groups, or rather over those groups that do not themselves exceed that. With all of them
/// in the mean, the massive activations of a few tokens would hide every other group of their rows.
/// `rows.scale` has the groups' max|x|.
static inline float felt_above(const QuantizedRows& rows, int64_t first, int64_t step) {
  const auto mean_below = [&](float limit) {
    float squares = 0.0f, count = 0.0f;
    for (int64_t g = 0; g < rows.groups; ++g) {
      const float absmax = rows.scale[first + g * step];
      const bool counts = absmax * absmax <= limit;
      squares += counts ? absmax * absmax : 0.0f;
      count += counts ? 1.0f : 0.0f;
    }
    return squares / count;
  };
  return kFelt * mean_below(kFelt * mean_below(__builtin_huge_valf()));
}

/// Quantizes a group into its place; Dots: of strip.h.
template <class Dots, int kBits>
static inline void quantize_group(const QuantizedRows& rows, int64_t at, int offset, float felt,
                                  const InputGroup& group) {
  const float absmax = group.absmax;
  const bool has_low = kBits == 16 && absmax * absmax > felt;
  const F32 inverse(absmax > 0.0f ? 127.0f / absmax : 0.0f);
  int8_t* quants = rows.quants + at * Dots::kRowBytes;
  F32 high_sum, low_sum;  // of small integers: exact
  for (int i = 0; i < kGroupVectors; ++i) {
    const F32 scaled = group.value[i] * inverse;
    const F32 high = round_to_int8(scaled);
    const F32 low = has_low ? round_to_int8((scaled - high) * F32(256.0f)) : F32{};
    Dots::store(quants, i * F32::kWidth, high, low);
    high_sum = high_sum + high;
    low_sum = low_sum + low;
  }
  int32_t total = static_cast<int32_t>(reduce_add(high_sum));
  if (kBits == 16) total = total * 256 + static_cast<int32_t>(reduce_add(low_sum));
  rows.scale[at] = absmax / (kBits == 8 ? 127.0f : 127.0f * 256.0f);
  rows.sum[at] = rows.scale[at] * static_cast<float>(total);
  rows.start[at] = -offset * total;
  rows.has_low[at] = has_low;
}

/// `offset`: what the unsigned quants of the weight are too large by.
template <class Dots, int kBits>
static inline void quantize_rows(const LinearParams& p, const QuantizedRows& rows, int offset,
                                 Share tokens) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
      const int64_t first = rows.place(token);
      const int64_t step = rows.block_rows(token / kRowBlock * kRowBlock);
      with_input_row<T>(p, token, [&](auto&& read) {
        float felt = -1.0f;
        if (p.activation_bits == 12) {
          for (int64_t g = 0; g < rows.groups; ++g) {
            rows.scale[first + g * step] = InputGroup(g, read).absmax;
          }
          felt = felt_above(rows, first, step);
        }
        for (int64_t g = 0; g < rows.groups; ++g) {
          quantize_group<Dots, kBits>(rows, first + g * step, offset, felt, InputGroup(g, read));
        }
      });
    }
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
