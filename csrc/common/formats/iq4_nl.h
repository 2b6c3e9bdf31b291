// SPDX-License-Identifier: Apache-2.0
// GGUF's IQ4_NL: blocks of 32 weights w = d table[q], q in 0 .. 15.
// A block: d (f16), then 16 bytes of q in pairs.
#pragma once

#include "common/formats/block.h"

namespace lampo::formats {

static constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

struct IQ4_NL {
  static constexpr const char* kName = "iq4_nl";
  static constexpr int kBlockSize = 32;
  static constexpr int kBlockBytes = 18;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kF16;
  static constexpr bool kHasMinimum = false;
  static constexpr const int8_t (&kTable)[16] = kIQ4Values;

  static constexpr int kCodesAt = 2;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.scales[0], from, 2);
    read_nibbles(from + 2, block.codes);
  }
  static void write(const Block& block, uint8_t* to) {
    memcpy(to, block.scales[0], 2);
    write_nibbles(block.codes, to + 2);
  }
};

}  // namespace lampo::formats
