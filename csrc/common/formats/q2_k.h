// SPDX-License-Identifier: Apache-2.0
// GGUF's Q2_K: blocks of 256 weights w = d s q - m t, q in 0 .. 3, with 4-bit s and t for each 16.
// A block: 16 bytes of s (lower four bits) and t, 64 bytes of q, d (f16), m (f16). Byte
// 32 h + i holds q of the weights 128 h + 32 k + i, k = 0 .. 3, from its lowest bits up.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q2_K {
  static constexpr const char* kName = "q2_k";
  static constexpr int kBlockSize = 256;
  static constexpr int kBlockBytes = 84;
  static constexpr int kLargestScale = 15;
  static constexpr int kScaleSize = 16;
  static constexpr int kCodeBits = 2;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kU4;
  static constexpr bool kHasMinimum = true;

  static void read(const uint8_t* from, Block& block) {
    for (int i = 0; i < 16; ++i) block.scales[i][0] = from[i];
    for (int i = 0; i < 256; ++i) {
      block.codes[i] = from[16 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
    }
    memcpy(block.d, from + 80, 2);
    memcpy(block.m, from + 82, 2);
  }
  static void write(const Block& block, uint8_t* to) {
    memset(to, 0, 80);
    for (int i = 0; i < 16; ++i) to[i] = block.scales[i][0];
    for (int i = 0; i < 256; ++i) {
      uint8_t& byte = to[16 + i / 128 * 32 + i % 32];
      byte = static_cast<uint8_t>(byte | block.codes[i] << i / 32 % 4 * 2);
    }
    memcpy(to + 80, block.d, 2);
    memcpy(to + 82, block.m, 2);
  }
};

}  // namespace lampo::formats
