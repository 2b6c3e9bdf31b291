// SPDX-License-Identifier: Apache-2.0
// GGUF's Q5_K: blocks of 256 weights w = d s q - m t, q in 0 .. 31, with 6-bit s and t for each 32.
// A block: d (f16), m (f16), 12 bytes of s and t (as Q4_K), 32 bytes of the fifth bits of q (byte
// i: weights 32 k + i from its lowest bit up), 128 bytes of the lower four (as Q4_K).
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q5_K {
  static constexpr const char* kName = "q5_k";
  static constexpr int kBlockSize = 256;
  static constexpr int kBlockBytes = 176;
  static constexpr int kLargestScale = 63;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 5;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kU8;
  static constexpr bool kHasMinimum = true;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.d, from, 2);
    memcpy(block.m, from + 2, 2);
    read_k_scales(from + 4, block);
    for (int i = 0; i < 256; ++i) {
      const int low = from[48 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15;
      block.codes[i] = static_cast<uint8_t>(low | (from[16 + i % 32] >> i / 32 & 1) << 4);
    }
  }
  static void write(const Block& block, uint8_t* to) {
    memcpy(to, block.d, 2);
    memcpy(to + 2, block.m, 2);
    write_k_scales(block, to + 4);
    memset(to + 16, 0, 32);
    for (int i = 0; i < 256; ++i) {
      const int high = block.codes[i] >> 4 & 1;
      to[16 + i % 32] = static_cast<uint8_t>(to[16 + i % 32] | high << i / 32);
    }
    for (int i = 0; i < 128; ++i) {
      const uint8_t* codes = block.codes + i / 32 * 64 + i % 32;
      to[48 + i] = static_cast<uint8_t>((codes[0] & 15) | (codes[32] & 15) << 4);
    }
  }
};

}  // namespace lampo::formats
