// SPDX-License-Identifier: Apache-2.0
// Reads of packed weights (common/formats/formats.h), four codes at a time.
//
// Codes 16 h + 4 t to 16 h + 4 t + 3 of a row of a group, h = 0, 1 and t = 0 .. 3, are one bit
// pattern in the bytes of one word of each plane: after a shift that h and t give, byte j has code
// 16 h + 4 t + j. They are also what lane 4 g + t has of a fragment of mma.sync (fragment.cuh).
#pragma once

#include "common/formats/formats.h"
#include "cuda/device/copy.cuh"
#include "cuda/device/ptx/arithmetic.cuh"

namespace lampo::cuda {

/// `x` rotated to the right by `n` bits, modulo 32.
__device__ inline uint32_t rotate_right(uint32_t x, int n) {
  return x >> (n & 31) | x << (-n & 31);
}

/// Words of a row with its codes 16 h + 4 t ... + 3, of each plane that the format has.
struct CodeWords {
  uint32_t wide;  // of nibbles or bytes
  uint32_t pairs;
  uint32_t singles;
};

/// Those of row `row` of a strip.
template <class Format>
__device__ inline CodeWords code_words(const uint8_t* group, int64_t row, int h, int t) {
  using Group = StripGroup<Format>;
  const auto word = [&](int offset, int i) {
    return reinterpret_cast<const uint32_t*>(group + offset)[i * kStripRows + row];
  };
  CodeWords words = {};
  if constexpr (Group::kHasBytes) words.wide = word(0, 4 * h + t);
  if constexpr (Group::kHasNibbles) words.wide = word(0, t);
  if constexpr (Group::kHasPairs) words.pairs = word(Group::kPairOffset, h);
  if constexpr (Group::kHasSingles) words.singles = word(Group::kSingleOffset, 0);
  return words;
}

/// Codes 16 h + 4 t ... + 3, a byte each.
template <class Format>
__device__ inline uint32_t four_codes(const CodeWords& words, int h, int t) {
  using Group = StripGroup<Format>;
  if constexpr (Group::kHasBytes) return words.wide;
  uint32_t codes = 0;
  if constexpr (Group::kHasNibbles) codes = words.wide >> 4 * h & 0x0f0f0f0fu;
  if constexpr (Group::kHasPairs) {
    const uint32_t bits = rotate_right(words.pairs, 2 * t - Group::kPairShift);
    codes |= bits & 0x03030303u << Group::kPairShift;
  }
  if constexpr (Group::kHasSingles) {
    const uint32_t bits = rotate_right(words.singles, 4 * h + t - Group::kSingleShift);
    codes |= bits & 0x01010101u << Group::kSingleShift;
  }
  return codes;
}

/// Where a group is: its block, with the factors, and itself.
struct GroupPlace {
  const uint8_t* block;
  const uint8_t* group;
};

/// Group number `index` of the strip at `strip`.
template <class Format>
__device__ inline GroupPlace group_at(const uint8_t* strip, int64_t index) {
  using Group = StripGroup<Format>;
  const uint8_t* block = strip + index / Group::kGroups * Group::kBlockBytes;
  return {block, block + Group::kFactorBytes + index % Group::kGroups * Group::kBytes};
}

/// As dispatch_format(), in a kernel: for what a branch per format costs nothing.
template <class... Formats, class Fn>
__device__ inline void switch_format(FormatList<Formats...>, WeightFormat format, Fn&& fn) {
  int place = 0;
  const auto take = [&]<class Format>() {
    const bool found = static_cast<WeightFormat>(place++) == format;
    if (found) fn.template operator()<Format>();
    return found;
  };
  (take.template operator()<Formats>() || ...);
}

/// Weights 16 h + 4 t ... + 3 of a row of a group, h = 0, 1, bit for bit as on the CPU.
template <class Format>
__device__ inline void read_weights(Vector<float, 4> (&weights)[2], const GroupPlace& at,
                                    int64_t row, int t) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int set = StripGroup<Format>::kScales == 2 ? h : 0;
    const float scale = scale_of<Format>(at.block, at.group, row, set);
    const float minimum = minimum_of<Format>(at.block, at.group, row, set);
    const uint32_t codes = four_codes<Format>(code_words<Format>(at.group, row, h, t), h, t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t byte = codes >> 8 * i & 0xff;
      const int code =
          StripGroup<Format>::kHasBytes ? static_cast<int8_t>(byte) : static_cast<int>(byte);
      weights[h].value[i] = decode(value_of<Format>(code), scale, minimum);
    }
  }
}

}  // namespace lampo::cuda
