// SPDX-License-Identifier: Apache-2.0
// GGUF's MXFP4: blocks of 32 weights w = 2^(e - 128) table[q], q in 0 .. 15: twice an E2M1 number,
// times half of an E8M0 scale.
// A block: e (a byte), then 16 bytes of q in pairs.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

static constexpr int8_t kTwiceE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct MXFP4 {
  static constexpr const char* kName = "mxfp4";
  static constexpr int kBlockSize = 32;
  static constexpr int kBlockBytes = 17;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kBF16;
  static constexpr bool kHasMinimum = false;
  static constexpr const int8_t (&kTable)[16] = kTwiceE2M1;

  static constexpr int kCodesAt = 1;

  static void read(const uint8_t* from, Block& block) {
    // 2^(e - 128) as bfloat16, below 2^-126 a subnormal number.
    const int e = from[0];
    const uint16_t bits = static_cast<uint16_t>(e < 2 ? 0x20 << e : (e - 1) << 7);
    memcpy(block.scales[0], &bits, 2);
    read_nibbles(from + 1, block.codes);
  }
};

}  // namespace lampo::formats
