// SPDX-License-Identifier: Apache-2.0
// Blocks of files to strips (common/formats/formats.h): codes in planes of bits, whose 4-byte words
// are transposed among 16 rows.
// Bytes: the weight once in, once out. A thread owns whole strips.
#include <cstring>

#include "common/formats/formats.h"
#include "cpu/kernel_table.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// Writes the planes of a group of one row; words of 4 codes are shifted together.
template <class Format>
[[gnu::always_inline]] inline void pack_codes(const uint8_t* codes, uint8_t* group, int lane) {
  using Group = StripGroup<Format>;
  uint32_t words[8];
  memcpy(words, codes, sizeof(words));
  const auto put = [&](int offset, int word, uint32_t bits) {
    memcpy(group + offset + (word * kStripRows + lane) * 4, &bits, 4);
  };
  if constexpr (Group::kHasBytes) {
    for (int i = 0; i < 8; ++i) put(0, i, words[i]);
  }
  if constexpr (Group::kHasNibbles) {
    constexpr uint32_t kLow = 0x0f0f0f0f;
    for (int i = 0; i < 4; ++i) put(0, i, (words[i] & kLow) | (words[4 + i] & kLow) << 4);
  }
  if constexpr (Group::kHasPairs) {
    for (int i = 0; i < 2; ++i) {
      uint32_t pairs = 0;
      for (int k = 0; k < 4; ++k) {
        pairs |= (words[4 * i + k] >> Group::kPairShift & 0x03030303) << 2 * k;
      }
      put(Group::kPairOffset, i, pairs);
    }
  }
  if constexpr (Group::kHasSingles) {
    uint32_t singles = 0;
    for (int k = 0; k < 8; ++k) singles |= (words[k] >> Group::kSingleShift & 0x01010101) << k;
    put(Group::kSingleOffset, 0, singles);
  }
}

/// Writes a block of one row into the block of a strip at `to`.
template <class Format>
void pack_block(const uint8_t* from, uint8_t* to, int lane) {
  using Group = StripGroup<Format>;
  formats::Block block;
  Format::read(from, block);
  if constexpr (Group::kHasFactors) {
    memcpy(to + Group::kDBytes * lane, block.d, Group::kDBytes);
    memcpy(to + Group::kMOffset + Group::kMBytes * lane, block.m, Group::kMBytes);
  }
  for (int g = 0; g < Group::kGroups; ++g) {
    uint8_t* group = to + Group::kFactorBytes + g * Group::kBytes;
    if constexpr (HasCodesOfStrips<Format>) {
      for (int i = 0; i < Group::kWideWords; ++i) {
        const uint8_t* codes = from + Format::kCodesAt + 4 * (g * Group::kWideWords + i);
        memcpy(group + (i * kStripRows + lane) * 4, codes, 4);
      }
    } else {
      pack_codes<Format>(block.codes + g * kGroupSize, group, lane);
    }
    for (int set = 0; set < Group::kScales; ++set) {
      const int at = set * Group::kScaleSetBytes + lane * Group::kScaleBytes;
      const int number = g * Group::kScales + set;
      memcpy(group + Group::kScaleOffset + at, block.scales[number], Group::kScaleBytes);
      if constexpr (Group::kHasMinima) {
        memcpy(group + Group::kMinimumOffset + at, block.minima[number], Group::kScaleBytes);
      }
    }
  }
}

template <class Format>
void pack(const PackWeightParams& p, const Team& team) {
  const int64_t blocks = p.in_features / Format::kBlockSize;
  const int64_t strip_bytes = StripGroup<Format>::strip_bytes(p.in_features);
  const Share mine = share_of((p.rows + kStripRows - 1) / kStripRows, team);
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    uint8_t* strip = static_cast<uint8_t*>(p.out) + s * p.stride_out_strip;
    const int64_t rows_left = p.rows - s * kStripRows;
    const int rows = rows_left < kStripRows ? static_cast<int>(rows_left) : kStripRows;
    if (rows < kStripRows) memset(strip, 0, static_cast<size_t>(strip_bytes));
    for (int lane = 0; lane < rows; ++lane) {
      const uint8_t* row =
          static_cast<const uint8_t*>(p.blocks) + (s * kStripRows + lane) * p.stride_blocks_row;
      for (int64_t b = 0; b < blocks; ++b) {
        pack_block<Format>(row + b * Format::kBlockBytes,
                           strip + b * StripGroup<Format>::kBlockBytes, lane);
      }
    }
  }
}

}  // namespace

void pack_weight(const PackWeightParams& p, const Team& team) {
  dispatch_format(p.format, [&]<class Format>() { pack<Format>(p, team); });
}

}  // namespace lampo::cpu::LAMPO_ISA
