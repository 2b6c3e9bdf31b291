// SPDX-License-Identifier: Apache-2.0
// GGUF's Q4_1: blocks of 32 weights w = d q + m, q in 0 .. 15.
// A block: d (f16), m (f16), then 16 bytes; byte i holds q[i] in its lower four bits, q[16 + i]
// above them.
#pragma once

#include "common/numeric.h"

namespace lampo::formats {

struct Q4_1 {
  static constexpr const char* kName = "q4_1";
  static constexpr int kGroupSize = 32;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 0;
  static constexpr bool kHasMinimum = true;
  static constexpr int kBlockBytes = 20;

  [[gnu::always_inline]] static void read_block(const uint8_t* block, uint8_t* codes,
                                                uint8_t* scale, uint8_t* minimum) {
    memcpy(scale, block, 2);
    memcpy(minimum, block + 2, 2);
    memcpy(codes, block + 4, 16);
  }
  [[gnu::always_inline]] LAMPO_HOST_DEVICE static float decode(int code, float scale,
                                                               float minimum) {
    return scale * static_cast<float>(code) + minimum;
  }
};

}  // namespace lampo::formats
