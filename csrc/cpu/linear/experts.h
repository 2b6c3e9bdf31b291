// SPDX-License-Identifier: Apache-2.0
// A linear with experts: rows of out in the order of their experts, a weight per expert. The rows
// of one expert are a linear of their own.
#pragma once

#include "cpu/runtime/team.h"
#include "params.h"

namespace lampo::cpu::LAMPO_ISA {

static inline int64_t clamp_index(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

/// Row of x for a row of out.
static inline int64_t x_row(const LinearParams& p, int64_t row) {
  return p.x_rows == nullptr ? row : clamp_index(p.x_rows[row], 0, p.num_x_rows - 1);
}

/// Rows of an expert; without experts, expert 0 has all rows.
static inline Share expert_rows(const LinearParams& p, int64_t expert) {
  if (p.num_experts == 0) return {0, p.num_tokens};
  const int64_t begin = clamp_index(p.expert_offsets[expert], 0, p.num_tokens);
  return {begin, clamp_index(p.expert_offsets[expert + 1], begin, p.num_tokens)};
}

/// Number of experts; 1 without.
static inline int64_t num_groups(const LinearParams& p) {
  return p.num_experts == 0 ? 1 : p.num_experts;
}

/// Whether all experts read one row of x, each of them once: that of a single token.
static inline bool shares_one_row(const LinearParams& p) {
  if (p.num_experts == 0 || p.num_x_rows != 1) return false;
  for (int64_t expert = 0; expert < p.num_experts; ++expert) {
    const Share rows = expert_rows(p, expert);
    if (rows.end - rows.begin > 1) return false;
  }
  return true;
}

/// The linear of one expert, whose rows are `rows`.
static inline LinearParams expert_part(const LinearParams& p, int64_t expert, Share rows) {
  const auto moved = [](const void* base, int64_t bytes) {
    return base == nullptr ? base : static_cast<const char*>(base) + bytes;
  };
  LinearParams part = p;
  part.num_experts = 0;
  part.num_tokens = rows.end - rows.begin;
  part.weight = moved(p.weight, expert * p.stride_weight_expert);
  part.bias = moved(p.bias, expert * p.out_features * size_of(p.bias_dtype));
  part.out = static_cast<char*>(p.out) + rows.begin * p.stride_out_token * size_of(p.out_dtype);
  if (p.x_rows != nullptr) {
    part.x_rows = p.x_rows + rows.begin;
  } else {
    part.x = moved(p.x, rows.begin * p.stride_x_token * size_of(p.dtype));
    part.num_x_rows = part.num_tokens;
  }
  return part;
}

/// Rows that are multiplied in the time in which a weight is read.
inline constexpr int64_t kRowsPerRead = 8;

/// Calls fn(expert, rows, columns) for tiles of up to `row_block` of an expert's rows by
/// `column_tile` columns, which cover all rows of all experts. Threads share the work of all
/// experts, cut between columns: a single expert occupies all of them too. Each passes all of its
/// columns of an expert while a block of rows stays in its cache.
template <class Fn>
static inline void for_each_expert_tile(const LinearParams& p, int64_t row_block,
                                        int64_t num_columns, int64_t column_tile, const Team& team,
                                        Fn&& fn) {
  const int64_t tiles = (num_columns + column_tile - 1) / column_tile;
  const auto cost = [](Share rows) {  // of a tile
    return rows.end == rows.begin ? 0 : rows.end - rows.begin + kRowsPerRead;
  };
  int64_t total = 0;
  for (int64_t e = 0; e < num_groups(p); ++e) total += cost(expert_rows(p, e)) * tiles;
  const int64_t pieces = team.size * kPiecesOfShare;
  for_each_piece(
      team, [](int) { return kPiecesOfShare; },
      [&](int rank, int64_t piece) {
        const int64_t number = rank * kPiecesOfShare + piece;
        const Share work{total * number / pieces, total * (number + 1) / pieces};
        int64_t first = 0;  // work before the expert
        for (int64_t e = 0; e < num_groups(p) && first < work.end; ++e) {
          const Share rows = expert_rows(p, e);
          const int64_t each = cost(rows);
          // A tile belongs to the piece in which it begins.
          const auto tile_at = [&](int64_t at) {
            return each == 0 ? 0 : clamp_index((at - first + each - 1) / each, 0, tiles);
          };
          const int64_t begin = tile_at(work.begin), end = tile_at(work.end);
          for (int64_t row = rows.begin; row < rows.end && begin < end; row += row_block) {
            const int64_t row_end = row + row_block < rows.end ? row + row_block : rows.end;
            for (int64_t tile = begin; tile < end; ++tile) {
              const int64_t column = tile * column_tile;
              const int64_t last = column + column_tile;
              fn(e, Share{row, row_end}, Share{column, last < num_columns ? last : num_columns});
            }
          }
          first += each * tiles;
        }
      });
}

}  // namespace lampo::cpu::LAMPO_ISA
