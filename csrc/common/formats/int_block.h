// SPDX-License-Identifier: Apache-2.0
// Integers with a scale and a zero point for each block of a row, as GPTQ, AWQ and
// compressed-tensors define them: blocks of 32 to 128 weights w = d (q - z), q in 0 .. 15 or in
// -128 .. 127. Where they have a scale for more weights than a block, blocks repeat it.
// A block: d (f16 or f32), z (an int8), then q: 16 bytes in pairs, or 32 int8, for each 32 weights.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

template <class D, int kBits, int kSize>
struct IntBlock {
  static constexpr int kBlockSize = kSize;
  static constexpr int kBlockBytes = sizeof(D) + 1 + kSize * kBits / 8;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = kBits;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType =
      sizeof(D) == 4 ? ScaleType::kF32OfBlock : ScaleType::kF16OfBlock;
  static constexpr bool kHasMinimum = true;

  static constexpr int kCodesAt = sizeof(D) + 1;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.d, from, sizeof(D));
    block.m[0] = from[sizeof(D)];
    for (int i = 0; i < kSize; i += 32) {
      const uint8_t* codes = from + kCodesAt + i * kBits / 8;
      if constexpr (kBits == 8) {
        memcpy(block.codes + i, codes, 32);
      } else {
        read_nibbles(codes, block.codes + i);
      }
    }
  }
};

struct Int4G32 : IntBlock<F16, 4, 32> {
  static constexpr const char* kName = "int4_g32";
};
struct Int4G64 : IntBlock<F16, 4, 64> {
  static constexpr const char* kName = "int4_g64";
};
struct Int4G128 : IntBlock<float, 4, 128> {
  static constexpr const char* kName = "int4_g128";
};
struct Int8G128 : IntBlock<float, 8, 128> {
  static constexpr const char* kName = "int8_g128";
};

}  // namespace lampo::formats
