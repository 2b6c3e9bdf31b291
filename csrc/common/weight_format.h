// SPDX-License-Identifier: Apache-2.0
// Packed weights: GGUF's blocks of 32 (Q4_0, Q4_1, Q8_0), the same bits in the order in which the
// kernels read them.
//
// GGUF stores a row as blocks: scale d (f16), Q4_1 also a minimum m (f16), then 32 quants q.
//   Q4_0: w = d (q - 8), Q4_1: w = d q + m, with q in 0..15; byte i holds q[i] low and q[i+16] high
//   Q8_0: w = d q, with q in -128..127
// Packed, kStripRows = 16 rows form a strip: for each group of 32 inputs in turn
//   quants [words][16 rows][4 bytes]   the 4-byte words of 16 rows' blocks, side by side
//   d      [16 rows] f16
//   m      [16 rows] f16               Q4_1 only
// so that one 64-byte load gives each of 16 rows its next 4 bytes, and one 32-byte load 16 scales,
// and a thread reads its share of a matrix from one end to the other. (With the scales at the end
// of each strip the hardware prefetchers lost track: 15 GB/s a thread against 25.) Missing rows of
// the last strip are zero.
#pragma once

#include <cstdint>

namespace lampo {

enum class WeightFormat : uint8_t { kQ4_0, kQ4_1, kQ8_0 };

inline constexpr int kStripRows = 16;
inline constexpr int kGroupSize = 32;

/// Geometry of a packed weight with `in_features` columns. Sizes and offsets in bytes.
struct StripLayout {
  int words;            // 4-byte words per block: 4 or 8
  bool has_min;         //
  int block_bytes;      // of one GGUF block
  int scale_offset;     // of d within a group
  int min_offset;       // of m within a group
  int group_bytes;      // of 16 rows
  int64_t groups;       // blocks per row
  int64_t strip_bytes;  //
};

constexpr StripLayout strip_layout(WeightFormat format, int64_t in_features) {
  StripLayout layout{};
  layout.words = format == WeightFormat::kQ8_0 ? 8 : 4;
  layout.has_min = format == WeightFormat::kQ4_1;
  layout.block_bytes = 2 + (layout.has_min ? 2 : 0) + layout.words * 4;
  layout.scale_offset = layout.words * kStripRows * 4;
  layout.min_offset = layout.scale_offset + kStripRows * 2;
  layout.group_bytes = layout.block_bytes * kStripRows;
  layout.groups = in_features / kGroupSize;
  layout.strip_bytes = layout.groups * layout.group_bytes;
  return layout;
}

}  // namespace lampo
