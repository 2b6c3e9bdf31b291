// SPDX-License-Identifier: Apache-2.0
// E4M3 numbers with a factor for each block of a row, as FP8 checkpoints have them: blocks of 128
// weights w = d q. Where a factor is for more weights than a block, blocks repeat it.
// A block: d (f32), then q as 128 E4M3 codes. A NaN among them makes the whole block's factor NaN:
// products need not look for it.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct FP8_G128 {
  static constexpr const char* kName = "fp8_g128";
  static constexpr int kBlockSize = 128;
  static constexpr int kBlockBytes = 132;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 8;
  static constexpr bool kFloatCodes = true;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kF32OfBlock;
  static constexpr bool kHasMinimum = false;

  static constexpr int kCodesAt = 4;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.d, from, 4);
    memcpy(block.codes, from + 4, 128);
    bool nan = false;
    for (int i = 0; i < 128; ++i) nan |= (block.codes[i] & 0x7f) == 0x7f;
    if (nan) memcpy(block.d, "\x00\x00\xc0\x7f", 4);
  }
};

}  // namespace lampo::formats
