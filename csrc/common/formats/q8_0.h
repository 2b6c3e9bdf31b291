// SPDX-License-Identifier: Apache-2.0
// GGUF's Q8_0: blocks of 32 weights w = d q, q in -128 .. 127.
// A block: d (f16), then q as 32 int8.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

struct Q8_0 {
  static constexpr const char* kName = "q8_0";
  static constexpr int kBlockSize = 32;
  static constexpr int kBlockBytes = 34;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 8;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kF16;
  static constexpr bool kHasMinimum = false;

  static constexpr int kCodesAt = 2;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.scales[0], from, 2);
    memcpy(block.codes, from + 2, 32);
  }
  static void write(const Block& block, uint8_t* to) {
    memcpy(to, block.scales[0], 2);
    memcpy(to + 2, block.codes, 32);
  }
};

}  // namespace lampo::formats
