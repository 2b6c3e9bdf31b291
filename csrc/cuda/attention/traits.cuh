// SPDX-License-Identifier: Apache-2.0
// What a paged attention kernel is instantiated with, its shared memory, and its arguments.
#pragma once

#include "cuda/attention/plan.h"
#include "cuda/device/copy.cuh"
#include "cuda/device/fragment.cuh"
#include "cuda/device/warp.cuh"

namespace lampo::cuda {

/// T: BF16 or F16, of q and out and in the products. kCacheBytes: 2, the cache is T in shared
/// memory, or 1, it is int8 or fp8 there and T from there on.
template <class T, int kHeadDim_, int kCacheBytes_, TileKind kKind_>
struct AttentionTraits {
  using Element = T;
  static constexpr int kHeadDim = kHeadDim_;  // padded
  static constexpr int kCacheBytes = kCacheBytes_;
  static constexpr TileKind kKind = kKind_;
  static constexpr TileLayout kLayout = tile_layout(kKind, kHeadDim, kCacheBytes);
  static constexpr bool kSplitKeys = kKind == TileKind::kWarpsSplitKeys;
  static constexpr int kRows = kLayout.shape.rows;
  static constexpr int kKeys = kLayout.shape.keys;
  static constexpr int kWarps = kLayout.warps;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRowBlocks = kLayout.row_blocks;
  static constexpr int kWarpKeys = kLayout.warp_keys;
  static constexpr int kStages = kLayout.stages;
  static constexpr int kRowsPerCopier = kKeys / kWarps;  // of K and of V, that a warp copies
  static constexpr int kKvChunks = kHeadDim * kCacheBytes / kVectorBytes;  // of a row
  static constexpr int kQChunks = kHeadDim * 2 / kVectorBytes;
  static_assert((kStages & (kStages - 1)) == 0 && kRowsPerCopier <= 16);
};

/// Where chunk `chunk`, 16 bytes, of a row in shared memory lies, in chunks. Eight rows' chunks of
/// one number lie in different banks, as ldmatrix wants them.
template <int kChunks>
__device__ inline int chunk_position(int row, int chunk) {
  constexpr int kShift = kChunks >= 8 ? 0 : 1;  // rows of 64 bytes share a line of 128
  constexpr int kMask = kChunks >= 8 ? 7 : 3;
  return row * kChunks + (chunk ^ (row >> kShift & kMask));
}

/// The same for chunk 2 * pair + odd of row `lane` % 8 of eight that begin at a multiple of eight,
/// so that few addresses depend on the lane; the rest is constant.
template <int kChunks>
__device__ inline int chunk_of_pair(int lane, int pair, int odd) {
  constexpr int kShift = kChunks >= 8 ? 0 : 1;
  constexpr int kMask = kChunks >= 8 ? 7 : 3;
  const int of_lane = odd ^ (lane % 8 >> kShift & kMask);
  return ((2 * pair & kMask) ^ of_lane) + (2 * pair & ~kMask);
}

template <class Traits>
struct KvStage {
  uint4 k[Traits::kKeys * Traits::kKvChunks];
  uint4 v[Traits::kKeys * Traits::kKvChunks];
  float k_scale[Traits::kCacheBytes == 1 ? Traits::kKeys : 4];
  float v_scale[Traits::kCacheBytes == 1 ? Traits::kKeys : 4];
};

/// Finished rows, 16 of each warp at a time, in rows rather than in fragments.
template <class Traits>
struct RowStorage {
  float acc[Traits::kWarps][16][Traits::kHeadDim + 8];  // 8: no bank conflicts
  RowState state[Traits::kWarps][16];
};

/// What a block computes at a time: absolute key tiles `part` of a tile's `all`. It lies in shared
/// memory, not in every thread's scarce registers.
struct Work {
  Cut at;
  Sequence sequence;
  Tile tile;
  Range all, part;
  bool exists;
};

template <class Traits>
struct alignas(128) AttentionStorage {
  uint4 q[Traits::kRows * Traits::kQChunks];
  union {
    KvStage<Traits> stages[Traits::kStages];
    RowStorage<Traits> rows;
  };
  Work work;
};

/// What the host knows beside the Params.
struct AttentionArguments {
  PagedAttentionParams p;
  Plan plan;
  float score_factor;  // of raw scores, to base-2 units
  float cap_inner;     // soft-cap: scores become cap_outer * tanh(cap_inner * score); 0: none
  float cap_outer;
  uint32_t q_flip;  // sign bits: softmax_scale is negative
  int page_shift;
  int kv_bytes;     // of an element of the cache
  bool copy_kv;     // K and V can be copied by 16 bytes as they are
  bool vector_q;    // and q loaded
  bool vector_out;  // and out stored
};

}  // namespace lampo::cuda
