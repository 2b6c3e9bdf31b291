// SPDX-License-Identifier: Apache-2.0
// GGUF's Q4_0: blocks of 32 weights w = d (q - 8), q in 0 .. 15.
// A block: d (f16), then 16 bytes; byte i holds q[i] in its lower four bits, q[16 + i] above them.
#pragma once

#include "common/numeric.h"

namespace lampo::formats {

struct Q4_0 {
  static constexpr const char* kName = "q4_0";
  static constexpr int kGroupSize = 32;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 8;
  static constexpr bool kHasMinimum = false;
  static constexpr int kBlockBytes = 18;

  [[gnu::always_inline]] static void read_block(const uint8_t* block, uint8_t* codes,
                                                uint8_t* scale, uint8_t*) {
    memcpy(scale, block, 2);
    memcpy(codes, block + 2, 16);
  }
  /// The addition makes -0 a 0: a negative d times q = 8 is no special value.
  [[gnu::always_inline]] LAMPO_HOST_DEVICE static float decode(int code, float scale, float) {
    return scale * static_cast<float>(code - kOffset) + 0.0f;
  }
};

}  // namespace lampo::formats
