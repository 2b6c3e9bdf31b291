// SPDX-License-Identifier: Apache-2.0
// GGUF's Q4_K: blocks of 256 weights w = d s q - m t, q in 0 .. 15, with 6-bit s and t for each 32.
// A block: d (f16), m (f16), 12 bytes of s and t, 128 bytes of q. Byte 32 h + i holds q of the
// weights 64 h + i (lower four bits) and 64 h + 32 + i.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q4_K {
  static constexpr const char* kName = "q4_k";
  static constexpr int kBlockSize = 256;
  static constexpr int kBlockBytes = 144;
  static constexpr int kLargestScale = 63;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kU8;
  static constexpr bool kHasMinimum = true;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.d, from, 2);
    memcpy(block.m, from + 2, 2);
    read_k_scales(from + 4, block);
    for (int i = 0; i < 256; ++i) {
      block.codes[i] = from[16 + i / 64 * 32 + i % 32] >> i / 32 % 2 * 4 & 15;
    }
  }
  static void write(const Block& block, uint8_t* to) {
    memcpy(to, block.d, 2);
    memcpy(to + 2, block.m, 2);
    write_k_scales(block, to + 4);
    for (int i = 0; i < 128; ++i) {
      const uint8_t* codes = block.codes + i / 32 * 64 + i % 32;
      to[16 + i] = static_cast<uint8_t>(codes[0] | codes[32] << 4);
    }
  }
};

}  // namespace lampo::formats
