// SPDX-License-Identifier: Apache-2.0
// GGUF's NVFP4: blocks of 64 weights w = s table[q] / 2, q in 0 .. 15: twice an E2M1 number, times
// half of an E4M3 scale without a sign for each 16. Its NaN stands for 0.
// A block: 4 bytes of s, 32 bytes of q. Byte 8 g + i holds q of the weights 16 g + i (lower four
// bits) and 16 g + 8 + i.
#pragma once

#include "common/formats/mxfp4.h"

namespace lampo::formats {

struct NVFP4 {
  static constexpr const char* kName = "nvfp4";
  static constexpr int kBlockSize = 64;
  static constexpr int kBlockBytes = 36;
  static constexpr int kScaleSize = 16;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kHalfE4M3;
  static constexpr bool kHasMinimum = false;
  static constexpr const int8_t (&kTable)[16] = kTwiceE2M1;

  static void read(const uint8_t* from, Block& block) {
    for (int g = 0; g < 4; ++g) {
      block.scales[g][0] = from[g] == 0x7f ? 0 : from[g];
      for (int i = 0; i < 8; ++i) {
        const uint8_t byte = from[4 + 8 * g + i];
        block.codes[16 * g + i] = byte & 15;
        block.codes[16 * g + 8 + i] = byte >> 4;
      }
    }
  }
};

}  // namespace lampo::formats
