// SPDX-License-Identifier: Apache-2.0
// GGUF's Q5_1: blocks of 32 weights w = d q + m, q in 0 .. 31.
// A block: d (f16), m (f16), the fifth bits of q (4 bytes), then 16 bytes of the lower four.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q5_1 {
  static constexpr const char* kName = "q5_1";
  static constexpr int kBlockSize = 32;
  static constexpr int kBlockBytes = 24;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 5;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kF16;
  static constexpr bool kHasMinimum = true;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.scales[0], from, 2);
    memcpy(block.minima[0], from + 2, 2);
    read_nibbles(from + 8, block.codes);
    add_fifth_bits(from + 4, block.codes);
  }
  static void write(const Block& block, uint8_t* to) {
    memcpy(to, block.scales[0], 2);
    memcpy(to + 2, block.minima[0], 2);
    write_fifth_bits(block.codes, to + 4);
    write_nibbles(block.codes, to + 8);
  }
};

}  // namespace lampo::formats
