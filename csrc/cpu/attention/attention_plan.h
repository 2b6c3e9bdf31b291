// SPDX-License-Identifier: Apache-2.0
// The division of paged_attention into work, as pure functions of lengths. Two kinds of numbers:
//
// Definition of the result: a row (one query head of one token) takes its keys in tiles of kKeyTile
// and splits of kSplit, both at absolute positions. A split starts from an empty state; the states
// of the splits are folded in order. The batch, the number of threads and the kind of call (prefill
// or decode) have no influence.
//
// Scheduling only: a query tile is up to kMaxRows rows of one sequence and one KV head, which read
// their keys together. Threads own runs of (query tile, split) of about equal cost. The splits of a
// shared tile belong to two or more threads: their states are stored in the workspace, and after a
// barrier its rows are folded and written.
//
// Example: decode, 8 KV heads of 4 query heads, 500 tokens, 3 threads: 8 query tiles of 4 rows with
// 2 splits each, 5 1/3 splits a thread; the third and the sixth tile are shared.
#pragma once

#include "cpu/runtime/team.h"
#include "params.h"

namespace lampo::cpu {

inline constexpr int kKeyTile = 64;
inline constexpr int kSplit = 256;
inline constexpr int kMaxRows = 96;
/// Largest number of rows of a shared tile. States of larger ones fit a thread's cache, but stored
/// ones would not.
inline constexpr int kMaxSharedRows = 16;
/// Cost of a key tile beside that of its rows, in rows: its bytes and its transposition.
inline constexpr int kKeyTileCost = 8;
/// Query tiles per thread below which tiles are made smaller.
inline constexpr int kTilesPerThread = 4;

static inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Length of scratch rows of head_dim floats, padded with zeros: 64 bytes of an 8-bit cache are 64
/// floats.
static inline int64_t padded_head_dim(int64_t head_dim) { return round_up(head_dim, 64); }

/// Floats of one thread's scratch: see Scratch in key_tile.h.
static inline int64_t scratch_floats(int64_t head_dim) {
  const int64_t width = padded_head_dim(head_dim);
  return width * (2 * kKeyTile + 3 * kMaxRows) + kMaxRows * (kKeyTile + 16 + 7);
}

/// Floats of a stored state: accumulator, maximum, sum.
static inline int64_t partial_floats(int64_t head_dim) { return padded_head_dim(head_dim) + 16; }

static inline int64_t shared_tile_rows(int64_t group_size) {
  const int64_t rows = group_size > kMaxSharedRows ? group_size : kMaxSharedRows;
  return rows < kMaxRows ? rows : kMaxRows;
}

/// At most num_threads - 1 tiles are shared, each with all splits of the longest sequence.
static inline int64_t attention_workspace_bytes(int num_threads, int64_t group_size,
                                                int64_t head_dim, int64_t max_seq_len) {
  const int64_t num_splits = round_up(max_seq_len, kSplit) / kSplit;
  const int64_t partials =
      num_splits * shared_tile_rows(group_size) * partial_floats(head_dim) * (num_threads - 1);
  return (scratch_floats(head_dim) * num_threads + partials) * 4;
}

using KeyRange = Interval<int64_t>;

/// Range of the summation index of a product.
struct Depth {
  int begin, end;
};

/// Rows [row_begin, row_end) of a sequence, row = token * group_size + head in its group.
struct QueryTile {
  int64_t seq;
  int64_t kv_head;
  int64_t row_begin, row_end;
  int64_t first_token;     // of the sequence, in q
  int64_t first_position;  // of that token
  int64_t seq_len;
  KeyRange keys;  // seen by any of the rows
  int64_t num_rows() const { return row_end - row_begin; }
  int64_t first_split() const { return keys.begin / kSplit; }
  int64_t num_splits() const {
    return keys.begin < keys.end ? (keys.end + kSplit - 1) / kSplit - first_split() : 0;
  }
  KeyRange keys_of_split(int64_t split) const {
    const int64_t begin = split * kSplit, end = begin + kSplit;
    return {begin > keys.begin ? begin : keys.begin, end < keys.end ? end : keys.end};
  }
};

/// Cost of the part of a tile's keys that lies in [begin, end).
static inline int64_t cost_of_keys(const QueryTile& tile, int64_t begin, int64_t end) {
  if (begin < tile.keys.begin) begin = tile.keys.begin;
  if (end > tile.keys.end) end = tile.keys.end;
  if (begin >= end) return 0;
  const int64_t key_tiles = (end + kKeyTile - 1) / kKeyTile - begin / kKeyTile;
  return key_tiles * (kKeyTileCost + tile.num_rows());
}

static inline int64_t cost_of(const QueryTile& tile) {
  return 1 + cost_of_keys(tile, tile.keys.begin, tile.keys.end);
}

/// Calls fn(tile) for the query tiles of one sequence and its first KV head, in order.
template <class Fn>
static inline void for_each_query_tile(const PagedAttentionParams& p, int64_t seq,
                                       int64_t tile_rows, Fn&& fn) {
  const int64_t group_size = p.num_qo_heads / p.num_kv_heads;
  const int64_t first_token = p.cu_seqlens_q[seq];
  const int64_t num_tokens = p.cu_seqlens_q[seq + 1] - first_token;
  const int64_t seq_len = p.seq_lens[seq];
  const int64_t num_rows = num_tokens * group_size;
  QueryTile tile{.seq = seq,
                 .kv_head = 0,
                 .row_begin = 0,
                 .row_end = 0,
                 .first_token = first_token,
                 .first_position = seq_len - num_tokens,
                 .seq_len = seq_len,
                 .keys = {}};
  for (int64_t row = 0; row < num_rows; row += tile_rows) {
    tile.row_begin = row;
    tile.row_end = row + tile_rows < num_rows ? row + tile_rows : num_rows;
    tile.keys = keys_seen_by_any(p.mask, tile.first_position + row / group_size,
                                 tile.first_position + (tile.row_end - 1) / group_size, seq_len);
    fn(tile);
  }
}

/// Rows of a query tile: kMaxRows, or fewer if threads would be without work.
static inline int64_t choose_tile_rows(const PagedAttentionParams& p, int num_threads) {
  const int64_t group_size = p.num_qo_heads / p.num_kv_heads;
  int64_t rows = kMaxRows;
  for (; rows > kMaxSharedRows; rows /= 2) {
    int64_t tiles = 0;
    for (int64_t seq = 0; seq < p.batch_size; ++seq) {
      const int64_t num_tokens = p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq];
      tiles += (num_tokens * group_size + rows - 1) / rows * p.num_kv_heads;
    }
    if (tiles >= kTilesPerThread * num_threads) break;
  }
  // Rows of one token stay together, so its cache is read once.
  return rows < shared_tile_rows(group_size) ? shared_tile_rows(group_size) : rows;
}

}  // namespace lampo::cpu
