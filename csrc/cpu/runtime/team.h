// SPDX-License-Identifier: Apache-2.0
// A CPU kernel's view of its threads. All threads of a team call a kernel at once; each takes its
// share of the work, and a barrier may synchronise them. So the same threads run a list of kernels
// without returning to the caller in between.
#pragma once

#include <cstdint>

namespace lampo::cpu {

struct TeamState;

struct Team {
  int rank = 0;
  int size = 1;
  TeamState* state = nullptr;  // null in a team of one
  void sync() const;
  /// The next of `count` pieces in the share of `rank`, or `count` if all are taken. Shares are
  /// full again after a sync().
  int64_t take_piece(int rank, int64_t count) const;
};

/// Half-open share of [0, count) for one rank, in multiples of `grain` (the last may be cut).
struct Share {
  int64_t begin, end;
};

static inline Share share_of(int64_t count, const Team& team, int64_t grain = 1) {
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t begin = grains * team.rank / team.size * grain;
  const int64_t end = grains * (team.rank + 1) / team.size * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

/// Shares of other threads that one thread looks at: all in a small team.
inline constexpr int kSharesToHelp = 7;

/// Calls fn(rank, piece) for count(rank) pieces in the share of each rank. A thread takes the
/// pieces of its own share, then those that its neighbours have not taken: they may have slower
/// cores, or have lost them to other processes. At most one call between two sync().
template <class Count, class Fn>
static inline void for_each_piece(const Team& team, Count&& count, Fn&& fn) {
  if (team.size == 1) {
    for (int64_t piece = 0; piece < count(0); ++piece) fn(0, piece);
    return;
  }
  const int shares = team.size <= kSharesToHelp ? team.size : kSharesToHelp + 1;
  for (int i = 0; i < shares; ++i) {
    const int rank = (team.rank + i) % team.size;
    const int64_t end = count(rank);
    for (int64_t piece; (piece = team.take_piece(rank, end)) < end;) fn(rank, piece);
  }
}

/// Pieces of a share and a block of rows: few, as taking one costs some nanoseconds; enough for
/// the others to help.
inline constexpr int64_t kPiecesOfShare = 4;

/// Calls fn(rows, columns) for tiles of `row_block` by `column_tile` that cover a matrix. Threads
/// share the columns; each passes all of its columns while a block of rows stays in its cache.
template <class Fn>
static inline void for_each_tile(int64_t num_rows, int64_t row_block, int64_t num_columns,
                                 int64_t column_tile, const Team& team, Fn&& fn) {
  const auto cut = [](int64_t begin, int64_t size, int64_t end) {
    return Share{begin, begin + size < end ? begin + size : end};
  };
  const auto share_of_rank = [&](int rank) {
    return share_of(num_columns, Team{rank, team.size}, column_tile);
  };
  // The same for all shares, which differ by a tile at most.
  const int64_t tiles = (num_columns + column_tile * team.size - 1) / (column_tile * team.size);
  const int64_t piece_columns = (tiles + kPiecesOfShare - 1) / kPiecesOfShare * column_tile;
  const int64_t num_blocks = (num_rows + row_block - 1) / row_block;
  const auto pieces_of_block = [&](Share share) {
    return (share.end - share.begin + piece_columns - 1) / piece_columns;
  };
  for_each_piece(
      team, [&](int rank) { return num_blocks * pieces_of_block(share_of_rank(rank)); },
      [&](int rank, int64_t piece) {
        const Share share = share_of_rank(rank);
        const int64_t pieces = pieces_of_block(share);
        const Share rows = cut(piece / pieces * row_block, row_block, num_rows);
        const int64_t first = share.begin + piece % pieces * piece_columns;
        const Share columns = cut(first, piece_columns, share.end);
        for (int64_t at = columns.begin; at < columns.end; at += column_tile) {
          fn(rows, cut(at, column_tile, columns.end));
        }
      });
}

}  // namespace lampo::cpu
