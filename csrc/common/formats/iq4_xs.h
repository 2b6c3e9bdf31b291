// SPDX-License-Identifier: Apache-2.0
// GGUF's IQ4_XS: blocks of 256 weights w = d (s - 32) table[q], q in 0 .. 15, with a 6-bit s for
// each 32 and IQ4_NL's table.
// A block: d (f16), 2 bytes of the upper two bits of s, from the lowest bits up, 4 bytes of the
// lower four in pairs, 128 bytes of q: 16 for each 32 weights, in pairs.
#pragma once

#include "common/formats/iq4_nl.h"

namespace lampo::formats {

struct IQ4_XS {
  static constexpr const char* kName = "iq4_xs";
  static constexpr int kBlockSize = 256;
  static constexpr int kBlockBytes = 136;
  static constexpr int kLargestScale = 31;
  static constexpr int kScaleSize = 32;
  static constexpr int kCodeBits = 4;
  static constexpr int kOffset = 0;
  static constexpr ScaleType kScaleType = ScaleType::kI8;
  static constexpr bool kHasMinimum = false;
  static constexpr const int8_t (&kTable)[16] = kIQ4Values;

  static void read(const uint8_t* from, Block& block) {
    memcpy(block.d, from, 2);
    for (int i = 0; i < 8; ++i) {
      const int low = from[4 + i / 2] >> i % 2 * 4 & 15;
      const int high = from[2 + i / 4] >> i % 4 * 2 & 3;
      block.scales[i][0] = static_cast<uint8_t>((low | high << 4) - 32);
      read_nibbles(from + 8 + 16 * i, block.codes + 32 * i);
    }
  }
  static void write(const Block& block, uint8_t* to) {
    memcpy(to, block.d, 2);
    memset(to + 2, 0, 6);
    for (int i = 0; i < 8; ++i) {
      const int s = static_cast<int8_t>(block.scales[i][0]) + 32;
      to[4 + i / 2] = static_cast<uint8_t>(to[4 + i / 2] | (s & 15) << i % 2 * 4);
      to[2 + i / 4] = static_cast<uint8_t>(to[2 + i / 4] | s >> 4 << i % 4 * 2);
      write_nibbles(block.codes + 32 * i, to + 8 + 16 * i);
    }
  }
};

}  // namespace lampo::formats
