// SPDX-License-Identifier: Apache-2.0
// GGUF's Q3_K: blocks of 256 weights w = d (s - 32) (q - 4), q in 0 .. 7, with a 6-bit s for each
// 16.
// A block: 32 bytes of the third bits of q (byte i: weights 32 k + i from its lowest bit up), 64
// bytes of the lower two (as Q2_K), 12 bytes of s, d (f16). Of s, bytes 0 to 7 hold the lower four
// bits of numbers i and 8 + i, bytes 8 to 11 the upper two of i, 4 + i, 8 + i and 12 + i.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q3_K {
  static constexpr const char* kName = "q3_k";
  static constexpr int kBlockSize = 256;
  static constexpr int kBlockBytes = 110;
  static constexpr int kLargestScale = 31;
  static constexpr int kScaleSize = 16;
  static constexpr int kCodeBits = 3;
  static constexpr int kOffset = 4;
  static constexpr ScaleType kScaleType = ScaleType::kI8;
  static constexpr bool kHasMinimum = false;

  static void read(const uint8_t* from, Block& block) {
    const uint8_t* scales = from + 96;
    for (int i = 0; i < 16; ++i) {
      const int low = scales[i % 8] >> i / 8 * 4 & 15;
      const int high = scales[8 + i % 4] >> i / 4 * 2 & 3;
      block.scales[i][0] = static_cast<uint8_t>((low | high << 4) - 32);
    }
    for (int i = 0; i < 256; ++i) {
      const int low = from[32 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
      block.codes[i] = static_cast<uint8_t>(low | (from[i % 32] >> i / 32 & 1) << 2);
    }
    memcpy(block.d, from + 108, 2);
  }
  static void write(const Block& block, uint8_t* to) {
    memset(to, 0, 108);
    uint8_t* scales = to + 96;
    for (int i = 0; i < 16; ++i) {
      const int s = static_cast<int8_t>(block.scales[i][0]) + 32;
      scales[i % 8] = static_cast<uint8_t>(scales[i % 8] | (s & 15) << i / 8 * 4);
      scales[8 + i % 4] = static_cast<uint8_t>(scales[8 + i % 4] | s >> 4 << i / 4 * 2);
    }
    for (int i = 0; i < 256; ++i) {
      const int q = block.codes[i];
      uint8_t& low = to[32 + i / 128 * 32 + i % 32];
      low = static_cast<uint8_t>(low | (q & 3) << i / 32 % 4 * 2);
      to[i % 32] = static_cast<uint8_t>(to[i % 32] | q >> 2 << i / 32);
    }
    memcpy(to + 108, block.d, 2);
  }
};

}  // namespace lampo::formats
