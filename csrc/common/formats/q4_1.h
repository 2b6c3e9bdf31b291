// SPDX-License-Identifier: Apache-2.0
// GGUF's Q4_1: blocks of 32 weights w = d q + m, q in 0 .. 15.
// A block: d (f16), m (f16), then 16 bytes of q in pairs.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q4_1 {
  static constexpr const char* kName = "q4_1";
  static constexpr int kBlockSize = 32;
  static constexpr int kBlockBytes = 20;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kF16;
  static constexpr bool kHasMinimum = true;

  static constexpr int kCodesAt = 4;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.scales[0], from, 2);
    memcpy(block.minima[0], from + 2, 2);
    read_nibbles(from + 4, block.codes);
  }
  static void write(const Block& block, uint8_t* to) {
    memcpy(to, block.scales[0], 2);
    memcpy(to + 2, block.minima[0], 2);
    write_nibbles(block.codes, to + 4);
  }
};

}  // namespace lampo::formats
