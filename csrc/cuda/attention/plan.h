// SPDX-License-Identifier: Apache-2.0
// Division of work among blocks: a resident block gets the tiles and key tiles between two cuts, of
// equal cost. It is computed on the device, since lengths are there (paged_attention_plan.cu), in
// arrays of fixed size: nothing in a captured call changes with the lengths.
//
// The cost of a tile is its key tiles and an overhead (loading queries, filling the pipeline,
// storing results). The tiles of all sequences form one line, with num_blocks cuts at equal
// distances, so decode and prefill, short and long sequences mix. A cut closer than `min_part` key
// tiles to an end of a tile moves to that end. If shares would be smaller than min_share, fewer
// blocks get work.
//
// A tile that several blocks share is merged by the one that arrives last (merge.cuh): cuts within
// one tile are neighbours, and the first of them has the tile's count of arrivals.
//
// A plan serves all calls with equal shapes, lengths and mask (AttentionOptions::planned).
//
// Example: two sequences of 1000 and 10 key tiles, 2 KV heads, overhead 2, 100 blocks: the line is
// 2 (1002 + 12) = 2028 long, a share is 20.28; the first head's tile is cut 49 times.
//
// Deterministic: a tile's keys are cut at multiples of kSplitKeys positions only. A split starts
// from an empty state, and the states are folded in order: by the block if it has all splits, else
// by the merge, with the same function. So the bits of a row depend on its own keys and position
// alone. Only tiles of sequences with a single row tile (decode) are cut, as long as there is room
// for the states of their splits; prefill has enough tiles.
#pragma once

#include "cuda/attention/layout.h"

namespace lampo::cuda {

inline constexpr int kSplitKeys = 2048;

struct Plan {
  TileShape shape;
  bool deterministic;
  int num_blocks;
  int overhead;          // of a tile, in key tiles
  int min_part;          // key tiles
  int min_share;         // cost
  Cut* cuts;             // [num_blocks + 1]
  Range* tile_cuts;      // [num_blocks + 1], of a cut within a tile: all cuts within that tile
  unsigned* arrived;     // [num_blocks + 1], key tiles of the shared tile; 0 between calls
  int64_t* costs;        // [num_sequences + 1], scratch of the plan
  int64_t* first_split;  // [num_sequences] of the rows for splits, its first; kNowhere: none
  RowState* states;      // [2 * num_blocks * shape.rows]
  float* accumulators;   // [2 * num_blocks * shape.rows, head_dim_stride]
  int64_t partial_rows;
  int head_dim_stride;
};

/// Not measured yet: a partial result costs its bytes and the latency of a merge.
constexpr Plan make_plan(const TileLayout& layout, int num_blocks, bool deterministic) {
  const bool keys = layout.shape.rows == 16;
  const bool large = layout.shape.keys == 128;  // 64 KB of K and V, for heads of 128
  return {.shape = layout.shape,
          .deterministic = deterministic,
          .num_blocks = num_blocks,
          .overhead = keys || large ? 2 : 4,
          .min_part = large  ? 1
                      : keys ? 2
                             : 4,
          .min_share = large  ? 2
                       : keys ? 4
                              : 8,
          .cuts = nullptr,
          .tile_cuts = nullptr,
          .arrived = nullptr,
          .costs = nullptr,
          .first_split = nullptr,
          .states = nullptr,
          .accumulators = nullptr,
          .partial_rows = int64_t{2} * num_blocks * layout.shape.rows,
          .head_dim_stride = 0};
}

LAMPO_HOST_DEVICE static inline int num_sequences(const PagedAttentionParams& p) {
  return static_cast<int>(p.batch_size) + 1;  // with the padding
}

LAMPO_HOST_DEVICE static inline int cost_of(const Plan& plan, Range key_tiles) {
  return key_tiles.end - key_tiles.begin + plan.overhead;
}

/// Row tiles of a sequence that thread `lane` of `lanes` sums: several threads share a long prompt.
LAMPO_HOST_DEVICE static inline Range row_tiles_of_lane(int row_tiles, int lane, int lanes) {
  const int run = ceil_div(row_tiles, lanes);
  const int64_t begin = static_cast<int64_t>(lane) * run;
  return {clamp_to(begin, 0, row_tiles), clamp_to(begin + run, 0, row_tiles)};
}

/// Cost of the row tiles of a lane, for one KV head.
LAMPO_HOST_DEVICE static inline int64_t cost_of_lane(const PagedAttentionParams& p,
                                                     const Plan& plan, int seq, int lane,
                                                     int lanes) {
  const Sequence sequence = sequence_of(p, seq);
  const Range run = row_tiles_of_lane(num_row_tiles(p, plan.shape, sequence), lane, lanes);
  int64_t cost = 0;
  for (int i = run.begin; i < run.end; ++i) {
    cost += cost_of(plan, key_tiles_of(plan.shape, tile_of(p, plan.shape, sequence, i)));
  }
  return cost;
}

/// Splits that overlap absolute key tiles [begin, end).
LAMPO_HOST_DEVICE static inline Range splits_of(TileShape shape, Range key_tiles) {
  const int per_split = kSplitKeys / shape.keys;
  return {key_tiles.begin / per_split, ceil_div(key_tiles.end, per_split)};
}

/// Number of rows of partial states that a sequence needs if its tiles are cut; 0: they cannot be.
LAMPO_HOST_DEVICE static inline int64_t split_rows_of(const PagedAttentionParams& p,
                                                      const Plan& plan, int seq) {
  const Sequence sequence = sequence_of(p, seq);
  if (num_row_tiles(p, plan.shape, sequence) != 1) return 0;
  const Tile tile = tile_of(p, plan.shape, sequence, 0);
  const Range splits = splits_of(plan.shape, key_tiles_of(plan.shape, tile));
  const int64_t num_splits = splits.end - splits.begin;
  return num_splits > 1 ? num_splits * p.num_kv_heads * (tile.row_end - tile.row_begin) : 0;
}

// Numbers of rows of Plan::states; kNowhere: none. The first row of a tile is:

inline constexpr int64_t kNowhere = -1;

/// For the part of a tile that a block shares with others. The part is the block's first work or,
/// if it begins with the tile, its last.
LAMPO_HOST_DEVICE static inline int64_t rows_of_part(const Plan& plan, int block, int key_tile) {
  return (int64_t{2} * block + (key_tile > 0 ? 0 : 1)) * plan.shape.rows;
}

/// Deterministic: for the running state of a tile with one block.
LAMPO_HOST_DEVICE static inline int64_t rows_of_block(const Plan& plan, int block) {
  return int64_t{block} * plan.shape.rows;
}

/// Deterministic: for a split of a tile that blocks share.
LAMPO_HOST_DEVICE static inline int64_t rows_of_split(const Plan& plan, const Cut& at,
                                                      const Tile& tile, int split) {
  const Range splits = splits_of(plan.shape, key_tiles_of(plan.shape, tile));
  const int64_t before = int64_t{at.kv_head} * (splits.end - splits.begin) + split - splits.begin;
  const int rows = tile.row_end - tile.row_begin;
  return clamp_to(rows_of_block(plan, plan.num_blocks) + plan.first_split[at.seq] + before * rows,
                  0, plan.partial_rows - rows);
}

/// Final position of a cut at `offset` of a tile's key tiles.
LAMPO_HOST_DEVICE static inline int snap_cut(const Plan& plan, Range key_tiles, int offset,
                                             bool may_split) {
  const int size = key_tiles.end - key_tiles.begin;
  if (offset >= size) return size;
  if (!plan.deterministic) {
    return offset < plan.min_part ? 0 : size - offset < plan.min_part ? size : offset;
  }
  if (!may_split) return 2 * offset < size ? 0 : size;
  const int per_split = kSplitKeys / plan.shape.keys;
  const int nearest = (key_tiles.begin + offset + per_split / 2) / per_split * per_split;
  return clamp_to(nearest - key_tiles.begin, 0, size);
}

/// Index of the last of n ascending values that is not above `value`. The first must not be.
LAMPO_HOST_DEVICE static inline int last_not_above(const int64_t* values, int n, int64_t factor,
                                                   int64_t value) {
  int low = 0;
  for (int high = n; high - low > 1;) {
    const int middle = low + (high - low) / 2;
    if (values[middle] * factor <= value) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Cut number `block`. costs [num_sequences * lanes + 1]: the running sums of cost_of_lane.
LAMPO_HOST_DEVICE static inline Cut find_cut(const PagedAttentionParams& p, const Plan& plan,
                                             const int64_t* costs, int lanes, int block) {
  const int sequences = num_sequences(p);
  const int64_t total = costs[static_cast<int64_t>(sequences) * lanes] * p.num_kv_heads;
  const int64_t wanted = total / plan.min_share;
  const int64_t used = wanted < 1 ? 1 : wanted < plan.num_blocks ? wanted : plan.num_blocks;
  const Cut end{sequences, 0, 0, 0};
  if (block >= used || total == 0) return end;
  int64_t rest = total / used * block + total % used * block / used;

  const int entry = last_not_above(costs, sequences * lanes, p.num_kv_heads, rest);
  Cut cut{entry / lanes, 0, 0, 0};
  const int64_t* of_sequence = costs + static_cast<int64_t>(cut.seq) * lanes;
  const int64_t per_head = of_sequence[lanes] - of_sequence[0];
  rest -= of_sequence[0] * p.num_kv_heads;
  cut.kv_head = static_cast<int>(rest / per_head);
  rest = rest % per_head + of_sequence[0];

  const Sequence sequence = sequence_of(p, cut.seq);
  const int row_tiles = num_row_tiles(p, plan.shape, sequence);
  const int lane = last_not_above(of_sequence, lanes, 1, rest);
  rest -= of_sequence[lane];
  cut.row_tile = row_tiles_of_lane(row_tiles, lane, lanes).begin;
  for (;; ++cut.row_tile) {
    const Tile tile = tile_of(p, plan.shape, sequence, cut.row_tile);
    const Range key_tiles = key_tiles_of(plan.shape, tile);
    const int cost = cost_of(plan, key_tiles);
    if (rest >= cost && cut.row_tile + 1 < row_tiles) {
      rest -= cost;
      continue;
    }
    const bool may_split = plan.deterministic && plan.first_split[cut.seq] != kNowhere;
    const int size = key_tiles.end - key_tiles.begin;
    // Half of the overhead precedes the keys.
    cut.key_tile =
        snap_cut(plan, key_tiles, clamp_to(rest - plan.overhead / 2, 0, size), may_split);
    // A cut at the end of a tile is one at the begin of the next, unless the tile has no keys.
    return size > 0 && cut.key_tile == size ? next_tile(p, plan.shape, cut) : cut;
  }
}

/// The cuts within the tile of cut number `cut`; none if it is not within a tile.
LAMPO_HOST_DEVICE static inline Range cuts_within_tile(const Plan& plan, int cut) {
  const Cut at = plan.cuts[cut];
  if (at.key_tile == 0) return {cut, cut};
  // Binary searches: cuts ascend.
  const auto bound = [&](int inside, int outside) {
    while (inside - outside > 1 || outside - inside > 1) {
      const int middle = inside + (outside - inside) / 2;
      const Cut other = plan.cuts[middle];
      (other.same_tile(at) && other.key_tile > 0 ? inside : outside) = middle;
    }
    return inside;
  };
  return {bound(cut, -1), bound(cut, plan.num_blocks + 1) + 1};
}

// The plan as read by a kernel, clamped into range: memory without a plan gives undefined results,
// never an illegal access.

LAMPO_HOST_DEVICE static inline Cut cut_of(const PagedAttentionParams& p, const Plan& plan,
                                           int block) {
  Cut cut = plan.cuts[block];
  cut.seq = clamp_to(cut.seq, 0, p.batch_size + 1);
  cut.kv_head = clamp_to(cut.kv_head, 0, p.num_kv_heads - 1);
  if (cut.seq > p.batch_size) return cut;
  const Sequence sequence = sequence_of(p, cut.seq);
  const int row_tiles = num_row_tiles(p, plan.shape, sequence);
  cut.row_tile = clamp_to(cut.row_tile, 0, row_tiles > 0 ? row_tiles - 1 : 0);
  const Range keys = key_tiles_of(plan.shape, tile_of(p, plan.shape, sequence, cut.row_tile));
  cut.key_tile = clamp_to(cut.key_tile, 0, keys.end - keys.begin);
  return cut;
}

/// The cuts within the tile of which `block` has a part, the first part or a later one.
LAMPO_HOST_DEVICE static inline Range tile_cuts_of(const Plan& plan, int block, bool first_part) {
  const Range cuts = plan.tile_cuts[first_part ? block + 1 : block];
  const int begin = clamp_to(cuts.begin, 1, plan.num_blocks);
  return {begin, clamp_to(cuts.end, begin, plan.num_blocks)};
}

}  // namespace lampo::cuda
