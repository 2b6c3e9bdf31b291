// SPDX-License-Identifier: Apache-2.0
// GGUF blocks to strips (common/formats/formats.h): a transposition of 4-byte words among 16 rows.
// Bytes: the weight once in, once out. A thread owns whole strips.
#include <cstring>

#include "common/formats/formats.h"
#include "cpu/kernel_table.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

template <class Format>
void pack_block(const uint8_t* block, uint8_t* group, int lane) {
  using Group = StripGroup<Format>;
  uint8_t codes[Group::kRowBytes];
  Format::read_block(block, codes, group + Group::kScaleOffset + 2 * lane,
                     group + Group::kMinimumOffset + 2 * lane);
  for (int i = 0; i < Group::kWords; ++i) {
    memcpy(group + (i * kStripRows + lane) * 4, codes + i * 4, 4);
  }
}

template <class Format>
void pack(const PackWeightParams& p, const Team& team) {
  const int64_t groups = p.in_features / kGroupSize;
  const int64_t strip_bytes = groups * StripGroup<Format>::kBytes;
  const Share mine = share_of((p.rows + kStripRows - 1) / kStripRows, team);
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    uint8_t* strip = static_cast<uint8_t*>(p.out) + s * p.stride_out_strip;
    const int64_t rows_left = p.rows - s * kStripRows;
    const int rows = rows_left < kStripRows ? static_cast<int>(rows_left) : kStripRows;
    if (rows < kStripRows) memset(strip, 0, static_cast<size_t>(strip_bytes));
    for (int lane = 0; lane < rows; ++lane) {
      const uint8_t* row =
          static_cast<const uint8_t*>(p.blocks) + (s * kStripRows + lane) * p.stride_blocks_row;
      for (int64_t g = 0; g < groups; ++g) {
        pack_block<Format>(row + g * Format::kBlockBytes, strip + g * StripGroup<Format>::kBytes,
                           lane);
      }
    }
  }
}

}  // namespace

void pack_weight(const PackWeightParams& p, const Team& team) {
  dispatch_format(p.format, [&]<class Format>() { pack<Format>(p, team); });
}

}  // namespace lampo::cpu::LAMPO_ISA
