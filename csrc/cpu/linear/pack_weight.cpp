// SPDX-License-Identifier: Apache-2.0
// GGUF blocks to strips (weight_format.h): a transposition of 4-byte words among 16 rows.
// Bytes: the weight once in, once out. A thread owns whole strips.
#include <cstring>

#include "common/weight_format.h"
#include "cpu/kernel_table.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

void pack_block(const StripLayout& layout, const uint8_t* block, uint8_t* group, int lane) {
  memcpy(group + layout.scale_offset + lane * 2, block, 2);
  if (layout.has_min) memcpy(group + layout.min_offset + lane * 2, block + 2, 2);
  const uint8_t* quants = block + layout.block_bytes - layout.words * 4;
  for (int i = 0; i < layout.words; ++i) {
    memcpy(group + (i * kStripRows + lane) * 4, quants + i * 4, 4);
  }
}

}  // namespace

void pack_weight(const PackWeightParams& p, const Team& team) {
  const StripLayout layout = strip_layout(p.format, p.in_features);
  const Share mine = share_of((p.rows + kStripRows - 1) / kStripRows, team);
  for (int64_t s = mine.begin; s < mine.end; ++s) {
    uint8_t* strip = static_cast<uint8_t*>(p.out) + s * p.stride_out_strip;
    const int64_t rows_left = p.rows - s * kStripRows;
    const int rows = rows_left < kStripRows ? static_cast<int>(rows_left) : kStripRows;
    if (rows < kStripRows) memset(strip, 0, static_cast<size_t>(layout.strip_bytes));
    for (int lane = 0; lane < rows; ++lane) {
      const uint8_t* row =
          static_cast<const uint8_t*>(p.blocks) + (s * kStripRows + lane) * p.stride_blocks_row;
      for (int64_t g = 0; g < layout.groups; ++g) {
        pack_block(layout, row + g * layout.block_bytes, strip + g * layout.group_bytes, lane);
      }
    }
  }
}

}  // namespace lampo::cpu::LAMPO_ISA
