// SPDX-License-Identifier: Apache-2.0
// Tile sizes, blocks and workspace of paged attention: pure functions of shapes and of a device's
// limits, for kernels, launchers and tests. Nothing here depends on lengths, so a captured call
// keeps its grid.
#pragma once

#include <cstdint>

#include "cuda/attention/tiles.h"
#include "cuda/runtime/device_limits.h"

namespace lampo::cuda {

/// Division of a tile among the warps of a block: by keys of every key tile, for decode, or by
/// rows, for prefill.
enum class TileKind { kWarpsSplitKeys, kWarpsSplitRows };

struct TileLayout {
  TileShape shape;
  int warps;
  int row_blocks;  // of 16 rows, per warp
  int warp_keys;   // of a key tile, per warp
  int stages;      // key tiles in shared memory
  int max_blocks;  // per multiprocessor, limited by registers
};

/// Kernels exist for these; other head_dims are padded with zeros.
constexpr int padded_head_dim(int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

/// Split keys: a warp copies and reads its own 16 keys, without a barrier in the loop. A tile has
/// 16 rows, the minimum of mma.sync; the stages hold 64 KB, or four key tiles.
/// Split rows: a warp holds 32 rows, so a fragment of K or V is multiplied twice per read from
/// shared memory; 16 rows if head_dim fills the registers.
/// head_dim 128, bfloat16:  split keys  16 rows, 64 keys, 4 warps, 2 stages of 32 KB
///                          split rows 128 rows, 32 keys, 4 warps, 4 stages of 16 KB
constexpr TileLayout tile_layout(TileKind kind, int padded_head_dim, int cache_bytes) {
  if (kind == TileKind::kWarpsSplitKeys) {
    const int keys = padded_head_dim <= 128 ? 64 : 32;
    const int stage_bytes = 2 * keys * padded_head_dim * cache_bytes;
    return {.shape = {.rows = 16, .keys = keys},
            .warps = keys / 16,
            .row_blocks = 1,
            .warp_keys = 16,
            .stages = 2 * stage_bytes < (64 << 10) ? 4 : 2,
            .max_blocks = 3};
  }
  const int row_blocks = padded_head_dim <= 128 ? 2 : 1;
  const int keys = 32;
  return {.shape = {.rows = 64 * row_blocks, .keys = keys},
          .warps = 4,
          .row_blocks = row_blocks,
          .warp_keys = keys,
          .stages = padded_head_dim == 128 ? 4 : 2,
          .max_blocks = 2};
}

/// Warps split keys if all sequences have the same small number of rows: decode, and verification
/// of a few tokens. The results of the two kinds differ in their last bits, so a deterministic call
/// uses one kind only.
constexpr TileKind choose_tile_kind(int64_t num_tokens, int64_t batch_size, int64_t group_size,
                                    bool deterministic) {
  const bool few =
      batch_size > 0 && num_tokens % batch_size == 0 && num_tokens / batch_size * group_size <= 16;
  return few && !deterministic ? TileKind::kWarpsSplitKeys : TileKind::kWarpsSplitRows;
}

/// Blocks that are resident at the same time, each of which gets an equal share of the work.
constexpr int choose_num_blocks(const TileLayout& layout, int64_t shared_bytes,
                                const DeviceLimits& limits) {
  constexpr int64_t kReserved = 1024;  // per block, by the runtime
  const int64_t fit = limits.shared_bytes_per_sm / (shared_bytes + kReserved);
  const int per_sm = fit < 1                   ? 1
                     : fit < layout.max_blocks ? static_cast<int>(fit)
                                               : layout.max_blocks;
  return per_sm * limits.num_sms;
}

/// A partial result of a row: maximum and sum of its softmax, beside the accumulator.
struct alignas(8) RowState {
  float m;  // the largest score, in base-2 units; -inf: no key
  float l;  // sum of 2^(score - m)
};

/// Byte offsets into the workspace.
struct WorkspaceLayout {
  int64_t cuts;          // [num_blocks + 1] Cut
  int64_t tile_cuts;     // [num_blocks + 1] Range
  int64_t arrived;       // [num_blocks + 1] unsigned
  int64_t costs;         // [num_sequences + 1] int64, if shared memory does not hold them
  int64_t first_split;   // [num_sequences] int64, deterministic only
  int64_t states;        // [partial_rows] RowState
  int64_t accumulators;  // [partial_rows, padded_head_dim] float
  int64_t bytes;
  int64_t partial_rows;
};

/// A block shares at most two tiles with others: its first and its last.
constexpr WorkspaceLayout workspace_layout(int64_t batch_size, int num_blocks, int tile_rows,
                                           int padded_head_dim) {
  constexpr int64_t kAlignment = 64;
  const auto behind = [](int64_t offset, int64_t bytes) {
    return (offset + bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  WorkspaceLayout w{};
  w.partial_rows = int64_t{2} * num_blocks * tile_rows;
  w.tile_cuts = behind(w.cuts, (num_blocks + 1) * sizeof(Cut));
  w.arrived = behind(w.tile_cuts, (num_blocks + 1) * sizeof(Range));
  w.costs = behind(w.arrived, (num_blocks + 1) * sizeof(unsigned));
  w.first_split = behind(w.costs, (batch_size + 2) * sizeof(int64_t));
  w.states = behind(w.first_split, (batch_size + 1) * sizeof(int64_t));
  w.accumulators = behind(w.states, w.partial_rows * sizeof(RowState));
  w.bytes = behind(w.accumulators, w.partial_rows * padded_head_dim * sizeof(float));
  return w;
}

}  // namespace lampo::cuda
