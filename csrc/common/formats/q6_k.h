// SPDX-License-Identifier: Apache-2.0
// GGUF's Q6_K: blocks of 256 weights w = d s (q - 32), q in 0 .. 63, with an int8 s for each 16.
// A block: 128 bytes of the lower four bits of q, 64 bytes of the upper two, 16 bytes of s, d
// (f16). Lower bits: byte 64 h + i holds the weights 128 h + i (its lower half) and 128 h + 64 + i,
// i = 0 .. 63. Upper bits: byte 32 h + i holds the weights 128 h + 32 k + i, k = 0 .. 3, from its
// lowest bits up.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q6_K {
  static constexpr const char* kName = "q6_k";
  static constexpr int kBlockSize = 256;
  static constexpr int kBlockBytes = 210;
  static constexpr int kLargestScale = 127;
  static constexpr int kScaleSize = 16;
  static constexpr int kCodeBits = 6;
  static constexpr int kOffset = 32;
  static constexpr ScaleType kScaleType = ScaleType::kI8;
  static constexpr bool kHasMinimum = false;

  static void read(const uint8_t* from, Block& block) {
    for (int i = 0; i < 256; ++i) {
      const int low = from[i / 128 * 64 + i % 64] >> i / 64 % 2 * 4 & 15;
      const int high = from[128 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
      block.codes[i] = static_cast<uint8_t>(low | high << 4);
    }
    for (int i = 0; i < 16; ++i) block.scales[i][0] = from[192 + i];
    memcpy(block.d, from + 208, 2);
  }
  static void write(const Block& block, uint8_t* to) {
    memset(to, 0, 192);
    for (int i = 0; i < 256; ++i) {
      uint8_t& low = to[i / 128 * 64 + i % 64];
      uint8_t& high = to[128 + i / 128 * 32 + i % 32];
      low = static_cast<uint8_t>(low | (block.codes[i] & 15) << i / 64 % 2 * 4);
      high = static_cast<uint8_t>(high | block.codes[i] >> 4 << i / 32 % 4 * 2);
    }
    for (int i = 0; i < 16; ++i) to[192 + i] = block.scales[i][0];
    memcpy(to + 208, block.d, 2);
  }
};

}  // namespace lampo::formats
