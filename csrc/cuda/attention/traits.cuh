// SPDX-License-Identifier: Apache-2.0
// Template parameters of a paged attention kernel, its shared memory, and its arguments.
#pragma once

#include "cuda/attention/plan.h"
#include "cuda/device/block.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/fragment.cuh"
#include "cuda/device/warp.cuh"

namespace lampo::cuda {

/// Position of chunk `chunk`, 16 bytes, of a row in shared memory, in chunks. Chunks of one number
/// of eight rows are in different banks, as ldmatrix needs.
template <int kChunks>
__device__ inline int chunk_position(int row, int chunk) {
  constexpr int kShift = kChunks >= 8 ? 0 : 1;  // rows of 64 bytes share a line of 128
  constexpr int kMask = kChunks >= 8 ? 7 : 3;
  return row * kChunks + (chunk ^ (row >> kShift & kMask));
}

/// T: BF16 or F16, the type of q, out and the products. Cache: an element of the cache in shared
/// memory, T or, for BF16, int8_t or F8E4M3.
template <class T, int kHeadDim_, class Cache, TileKind kKind_>
struct AttentionTraits {
  using Element = T;
  using CacheElement = Cache;
  static constexpr int kHeadDim = kHeadDim_;  // padded
  static constexpr int kCacheBytes = sizeof(Cache);
  static constexpr TileKind kKind = kKind_;
  static constexpr TileLayout kLayout = tile_layout(kKind, kHeadDim, kCacheBytes);
  static constexpr bool kSplitKeys = kKind == TileKind::kWarpsSplitKeys;
  static constexpr bool kAsyncProducts = false;
  static constexpr int kRows = kLayout.shape.rows;
  static constexpr int kKeys = kLayout.shape.keys;
  static constexpr int kWarps = kLayout.warps;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRowBlocks = kLayout.row_blocks;
  static constexpr int kWarpKeys = kLayout.warp_keys;
  static constexpr int kStages = kLayout.stages;
  static constexpr int kRowsPerCopier = kKeys / kWarps;  // of K and of V, per warp
  static constexpr int kKvChunks = kHeadDim * kCacheBytes / kVectorBytes;  // of a row
  static constexpr int kQChunks = kHeadDim * 2 / kVectorBytes;
  // Unrolled steps of Q K^T, of two chunks each: addresses are constants then. 32 rows of 128 bytes
  // leave no registers for that; of 256 bytes only on sm_80 and sm_90.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900
  static constexpr bool kRolled = kRowBlocks == 2 && kHeadDim == 128;
#else
  static constexpr bool kRolled = kRowBlocks == 2 && kHeadDim == 128 && kCacheBytes == 1;
#endif
  static constexpr int kUnrolled = kRolled ? 1 : kKvChunks / 2;
  static_assert((kStages & (kStages - 1)) == 0 && kRowsPerCopier <= 16);

  /// Synchronises the warps with rows.
  __device__ static void sync_warps() { sync_block(); }
  /// Position of a chunk of a row of Q in shared memory, in chunks.
  __device__ static int q_position(int row, int chunk) {
    return chunk_position<kQChunks>(row, chunk);
  }
};

/// Position of chunk 2 * pair + odd of row `lane` % 8, of eight rows that begin at a multiple of
/// eight: few addresses depend on the lane, the others are constants.
template <int kChunks>
__device__ inline int chunk_of_pair(int lane, int pair, int odd) {
  constexpr int kShift = kChunks >= 8 ? 0 : 1;
  constexpr int kMask = kChunks >= 8 ? 7 : 3;
  const int of_lane = odd ^ (lane % 8 >> kShift & kMask);
  return ((2 * pair & kMask) ^ of_lane) + (2 * pair & ~kMask);
}

/// Position of chunk kWarpSize * i + `lane` of rows that begin at a multiple of eight.
template <int kChunks>
__device__ inline int copy_position(int lane, int i) {
  constexpr int kShift = kChunks >= 8 ? 0 : 1;
  constexpr int kMask = kChunks >= 8 ? 7 : 3;
  const int of_lane = chunk_position<kChunks>(lane / kChunks, lane % kChunks);
  return i * kWarpSize + (of_lane ^ (i * (kWarpSize / kChunks) >> kShift & kMask));
}

template <class Traits>
struct KvStage {
  uint4 k[Traits::kKeys * Traits::kKvChunks];
  uint4 v[Traits::kKeys * Traits::kKvChunks];
  float k_scale[Traits::kCacheBytes == 1 ? Traits::kKeys : 4];
  float v_scale[Traits::kCacheBytes == 1 ? Traits::kKeys : 4];
};

/// Finished rows, 16 per warp at a time, as rows instead of fragments.
template <class Traits>
struct RowStorage {
  float acc[Traits::kWarps][16][Traits::kHeadDim + 8];  // 8: no bank conflicts
  RowState state[Traits::kWarps][16];
};

/// Unit of a block's work: absolute key tiles `part` of a tile's `all`. Kept in shared memory,
/// since registers are scarce.
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
  bool merges;  // the block is the last to finish its part of a shared tile
};

/// Arguments of the kernel: Params, the plan, and values derived on the host.
struct AttentionArguments {
  PagedAttentionParams p;
  Plan plan;
  float score_factor;  // of raw scores, to base-2 units
  float cap_inner;     // soft-cap: scores become cap_outer * tanh(cap_inner * score); 0: none
  float cap_outer;
  uint32_t q_flip;  // sign bits: softmax_scale is negative
  int page_shift;
  int last_page;
  int kv_bytes;        // of an element of the cache
  bool copy_kv;        // K and V can be copied unchanged by 16 bytes
  bool adjacent_rows;  // a warp's rows of a key tile are whole, and neighbours in a page
  bool vector_q;       // q can be loaded by 16 bytes
  bool vector_out;     // out can be stored by vectors
};

}  // namespace lampo::cuda
