// SPDX-License-Identifier: Apache-2.0
// NVFP4 with a factor d of the tensor, as safetensors have it: blocks of 128 weights
// w = d (s / 2) table[q], q in 0 .. 15: twice an E2M1 number, times half of an E4M3 scale s for
// each 16. Blocks repeat the factor.
// A block: d (f32), 8 bytes of s, then for each 32 weights 16 bytes of q in pairs.
#pragma once

#include "common/formats/mxfp4.h"

namespace lampo::formats {

struct NVFP4_G128 {
  static constexpr const char* kName = "nvfp4_g128";
  static constexpr int kBlockSize = 128;
  static constexpr int kBlockBytes = 76;
  static constexpr int kScaleSize = 16;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kFactoredE4M3;
  static constexpr bool kHasMinimum = false;
  static constexpr const int8_t (&kTable)[16] = kTwiceE2M1;

  static constexpr int kCodesAt = 12;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.d, from, 4);
    for (int i = 0; i < 8; ++i) block.scales[i][0] = from[4 + i];
    for (int i = 0; i < 4; ++i) read_nibbles(from + 12 + 16 * i, block.codes + 32 * i);
  }
};

}  // namespace lampo::formats
