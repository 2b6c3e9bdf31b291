// SPDX-License-Identifier: Apache-2.0
// Blocks of weights as files have them, taken apart.
#pragma once

#include "common/numeric.h"

namespace lampo::formats {

/// Type of the scales and minima in a strip.
///   kF16, kBF16  the number itself
///   kHalfE4M3    half of it
///   kI8, kU8     an integer, times a factor of the block: d for scales, -m for minima
///   kU4          likewise, with the scale in the lower and the minimum in the upper half of a byte
///   kFactoredE4M3  half of it, times a factor d of the block, an f32
///   kF16OfBlock, kF32OfBlock  none: the scale is the block's d, of that type; a minimum is -d z
///                  with its zero point z, an int8
enum class ScaleType {
  kF16,
  kBF16,
  kHalfE4M3,
  kI8,
  kU8,
  kU4,
  kFactoredE4M3,
  kF16OfBlock,
  kF32OfBlock
};

/// The largest block: 256 weights, and a scale for each 16 of them.
constexpr int kMaxBlock = 256;

/// A block of one row. Weight i has codes[i], scale i / kScaleSize and its minimum.
struct Block {
  uint8_t codes[kMaxBlock];           // an int8 where a format has kCodeBits 8
  uint8_t scales[kMaxBlock / 16][2];  // one byte, or two of 16-bit types
  uint8_t minima[kMaxBlock / 16][2];
  uint8_t d[4], m[2];  // d: f16 or f32; m: f16, or an int8 zero point
};

/// 4-bit codes in pairs: byte i holds code i in its lower four bits, code 16 + i above them.
[[gnu::always_inline]] static inline void read_nibbles(const uint8_t* from, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = from[i] & 15;
    codes[16 + i] = from[i] >> 4;
  }
}

/// Adds bit i of 32 to code i, as its fifth.
[[gnu::always_inline]] static inline void add_fifth_bits(const uint8_t* from, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) {
    codes[i] = static_cast<uint8_t>(codes[i] | (from[i / 8] >> i % 8 & 1) << 4);
  }
}

/// The 6-bit scales and minima of Q4_K's and Q5_K's eight groups, in 12 bytes: those of the first
/// four whole; of the last four the lower halves whole and the upper ones in the others' top bits.
[[gnu::always_inline]] static inline void read_k_scales(const uint8_t* from, Block& block) {
  for (int i = 0; i < 4; ++i) {
    block.scales[i][0] = from[i] & 63;
    block.minima[i][0] = from[4 + i] & 63;
    block.scales[4 + i][0] = static_cast<uint8_t>((from[8 + i] & 15) | from[i] >> 6 << 4);
    block.minima[4 + i][0] = static_cast<uint8_t>(from[8 + i] >> 4 | from[4 + i] >> 6 << 4);
  }
}

// The inverses, of what quantize_weight() makes.

static inline void write_nibbles(const uint8_t* codes, uint8_t* to) {
  for (int i = 0; i < 16; ++i) {
    to[i] = static_cast<uint8_t>((codes[i] & 15) | (codes[16 + i] & 15) << 4);
  }
}

static inline void write_fifth_bits(const uint8_t* codes, uint8_t* to) {
  memset(to, 0, 4);
  for (int i = 0; i < 32; ++i) {
    to[i / 8] = static_cast<uint8_t>(to[i / 8] | (codes[i] >> 4 & 1) << i % 8);
  }
}

static inline void write_k_scales(const Block& block, uint8_t* to) {
  for (int i = 0; i < 4; ++i) {
    const int s = block.scales[4 + i][0], t = block.minima[4 + i][0];
    to[i] = static_cast<uint8_t>(block.scales[i][0] | s >> 4 << 6);
    to[4 + i] = static_cast<uint8_t>(block.minima[i][0] | t >> 4 << 6);
    to[8 + i] = static_cast<uint8_t>((s & 15) | (t & 15) << 4);
  }
}

}  // namespace lampo::formats
