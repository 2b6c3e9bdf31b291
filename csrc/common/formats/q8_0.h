// SPDX-License-Identifier: Apache-2.0
// GGUF's Q8_0: blocks of 32 weights w = d q, q in -128 .. 127.
// A block: d (f16), then q as 32 int8.
#pragma once

#include "common/numeric.h"

namespace lampo::formats {

struct Q8_0 {
  static constexpr const char* kName = "q8_0";
  static constexpr int kGroupSize = 32;
  static constexpr int kCodeBits = 8;
  static constexpr int kOffset = 0;
  static constexpr bool kHasMinimum = false;
  static constexpr int kBlockBytes = 34;

  [[gnu::always_inline]] static void read_block(const uint8_t* block, uint8_t* codes,
                                                uint8_t* scale, uint8_t*) {
    memcpy(scale, block, 2);
    memcpy(codes, block + 2, 32);
  }
  [[gnu::always_inline]] LAMPO_HOST_DEVICE static float decode(int code, float scale, float) {
    return scale * static_cast<float>(code);
  }
};

}  // namespace lampo::formats
