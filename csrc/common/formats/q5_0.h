// SPDX-License-Identifier: Apache-2.0
// GGUF's Q5_0: blocks of 32 weights w = d (q - 16), q in 0 .. 31.
// A block: d (f16), the fifth bits of q (4 bytes), then 16 bytes of the lower four in pairs.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q5_0 {
  static constexpr const char* kName = "q5_0";
  static constexpr int kBlockSize = 32;
  static constexpr int kBlockBytes = 22;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 5;
  static constexpr int kOffset = 16;
  static constexpr ScaleType kScaleType = ScaleType::kF16;
  static constexpr bool kHasMinimum = false;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.scales[0], from, 2);
    read_nibbles(from + 6, block.codes);
    add_fifth_bits(from + 2, block.codes);
  }
  static void write(const Block& block, uint8_t* to) {
    memcpy(to, block.scales[0], 2);
    write_fifth_bits(block.codes, to + 2);
    write_nibbles(block.codes, to + 6);
  }
};

}  // namespace lampo::formats
