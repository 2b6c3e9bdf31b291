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
};

}  // namespace lampo::formats
