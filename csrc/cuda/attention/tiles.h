// SPDX-License-Identifier: Apache-2.0
// Tiles of paged attention, as pure functions of lengths, for host and device.
//
// A row is one query head of one token; row i of a sequence and KV head is head i % group_size of
// token i / group_size. A tile is up to TileShape::rows such rows, which read their keys together,
// key tile by key tile: TileShape::keys keys at absolute positions. Tiles are numbered (sequence,
// KV head, row tile), the last fastest, so that neighbours share their keys in cache. Padding, the
// tokens behind the last sequence, counts as one more sequence, without keys.
//
// Lengths, offsets and page ids are on the device and may have any value. Values out of range are
// clamped, so no access leaves a tensor; results are then undefined.
#pragma once

#include "common/numeric.h"
#include "params.h"

namespace lampo::cuda {

struct TileShape {
  int rows;
  int keys;
};

struct Sequence {
  int first_token;  // in q
  int num_tokens;
  int seq_len;

  LAMPO_HOST_DEVICE int position(int token) const { return seq_len - num_tokens + token; }
};

/// Keys, or key tiles, [begin, end).
using Range = Interval<int>;

/// The rows [begin, end) of a sequence and the keys that any of them sees.
struct Tile {
  int row_begin, row_end;
  Range keys;
};

/// A position in the sequence of all tiles; key_tile counts from the first one that the tile sees.
struct alignas(16) Cut {
  int seq, kv_head, row_tile, key_tile;

  LAMPO_HOST_DEVICE bool same_tile(const Cut& other) const {
    return seq == other.seq && kv_head == other.kv_head && row_tile == other.row_tile;
  }
};

LAMPO_HOST_DEVICE static inline int ceil_div(int a, int b) { return a / b + (a % b > 0); }

LAMPO_HOST_DEVICE static inline int clamp_to(int64_t value, int64_t low, int64_t high) {
  return static_cast<int>(value < low ? low : value > high ? high : value);
}

LAMPO_HOST_DEVICE static inline int group_size_of(const PagedAttentionParams& p) {
  return static_cast<int>(p.num_qo_heads) / static_cast<int>(p.num_kv_heads);
}

/// Sequence number `seq`; number batch_size is the padding.
LAMPO_HOST_DEVICE static inline Sequence sequence_of(const PagedAttentionParams& p, int seq) {
  const int begin = clamp_to(p.cu_seqlens_q[seq], 0, p.num_tokens);
  if (seq == p.batch_size) return {begin, static_cast<int>(p.num_tokens) - begin, 0};
  const int end = clamp_to(p.cu_seqlens_q[seq + 1], begin, p.num_tokens);
  const int64_t capacity = p.num_pages > 0 ? p.max_pages_per_seq * p.page_size : 0;
  return {begin, end - begin, clamp_to(p.seq_lens[seq], 0, capacity)};
}

LAMPO_HOST_DEVICE static inline int num_row_tiles(const PagedAttentionParams& p, TileShape shape,
                                                  const Sequence& sequence) {
  return ceil_div(sequence.num_tokens * group_size_of(p), shape.rows);
}

LAMPO_HOST_DEVICE static inline Tile tile_of(const PagedAttentionParams& p, TileShape shape,
                                             const Sequence& sequence, int row_tile) {
  const int group_size = group_size_of(p);
  const int num_rows = sequence.num_tokens * group_size;
  Tile tile{row_tile * shape.rows, num_rows, {0, 0}};
  if (num_rows - tile.row_begin > shape.rows) tile.row_end = tile.row_begin + shape.rows;
  tile.keys =
      keys_seen_by_any(p.mask, sequence.position(tile.row_begin / group_size),
                       sequence.position((tile.row_end - 1) / group_size), sequence.seq_len);
  return tile;
}

/// The key tiles of a tile's keys, at absolute positions.
LAMPO_HOST_DEVICE static inline Range key_tiles_of(TileShape shape, const Tile& tile) {
  return {tile.keys.begin / shape.keys, ceil_div(tile.keys.end, shape.keys)};
}

/// The first position of the next tile; behind the last one, seq is batch_size + 1.
LAMPO_HOST_DEVICE static inline Cut next_tile(const PagedAttentionParams& p, TileShape shape,
                                              Cut at) {
  at.key_tile = 0;
  if (++at.row_tile < num_row_tiles(p, shape, sequence_of(p, at.seq))) return at;
  at.row_tile = 0;
  if (++at.kv_head < p.num_kv_heads) return at;
  at.kv_head = 0;
  do {
    ++at.seq;
  } while (at.seq <= p.batch_size && sequence_of(p, at.seq).num_tokens == 0);
  return at;
}

}  // namespace lampo::cuda
