// SPDX-License-Identifier: Apache-2.0
// Template parameters of the paged attention kernel for wgmma, its shared memory, and its tiles.
#pragma once

#include "cuda/attention/traits.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/device/ptx/warpgroup.cuh"
#include "cuda/device/ptx/wgmma.cuh"

namespace lampo::cuda {

inline constexpr int kWarpgroupWarps = 4;

/// A tile has 64 rows for each of two warpgroups. One block fits on a multiprocessor.
constexpr TileLayout hopper_layout(int padded_head_dim) {
  return {.shape = {.rows = 128, .keys = 128},
          .warps = 2 * kWarpgroupWarps,
          .row_blocks = 1,
          .warp_keys = 128,
          .stages = padded_head_dim <= 64 ? 4 : 2,
          .max_blocks = 1};
}

/// T: BF16 or F16, the type of q, of the cache and of out. Names as in AttentionTraits; kWarps and
/// kThreads are of the warps with rows.
template <class T, int kHeadDim_>
struct HopperTraits {
  using Element = T;
  using CacheElement = T;
  static constexpr int kHeadDim = kHeadDim_;  // padded
  static constexpr int kCacheBytes = 2;
  static constexpr TileLayout kLayout = hopper_layout(kHeadDim);
  static constexpr bool kSplitKeys = false;
  static constexpr bool kAsyncProducts = true;  // P V runs while the next weights are computed
  static constexpr int kRows = kLayout.shape.rows;
  static constexpr int kKeys = kLayout.shape.keys;
  static constexpr int kWarps = kLayout.warps;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlockThreads = kThreads + kWarpgroupWarps * kWarpSize;  // with the copiers
  static constexpr int kRowBlocks = kLayout.row_blocks;
  static constexpr int kWarpKeys = kLayout.warp_keys;
  static constexpr int kStages = kLayout.stages;
  static constexpr int kRowsPerCopier = kKeys;
  static constexpr int kQChunks = kHeadDim * 2 / kVectorBytes;
  static constexpr int kHalves = kHeadDim / 64;         // lines per row, of 64 elements
  static constexpr int kTileChunks = kKeys * kQChunks;  // of K, or V, of a key tile
  static constexpr int kHalfChunks = kKeys * 8;         // of which one line of each key
  static constexpr int kTileBytes = kTileChunks * kVectorBytes;
  static_assert(kRows == kKeys && kHeadDim % 64 == 0);

  __device__ static void sync_warps() { sync_threads<1, kThreads>(); }
  template <int kFragments>
  __device__ static void wait_for(FragmentC<float> (&acc)[kFragments]) {
    wait_products<0>();
    settle(acc);
  }
  /// Position of a chunk of a row of Q, K or V, in chunks: lines of ptx/wgmma.cuh.
  __device__ static int q_position(int row, int chunk) {
    return chunk / 8 * kHalfChunks + chunk_position<8>(row, chunk % 8);
  }
};

/// Barriers of the ring of K, or of V: a stage is filled, then read by all warps with rows.
template <class Traits>
struct RingBarriers {
  Mbarrier full[Traits::kStages];   // one arrival, and the bytes of the stage
  Mbarrier empty[Traits::kStages];  // an arrival for each warp
};

template <class Traits>
struct alignas(1024) HopperStorage {
  union {
    uint4 q[Traits::kRows * Traits::kQChunks];
    RowStorage<Traits> rows;
  };
  alignas(1024) uint4 k[Traits::kStages][Traits::kTileChunks];
  uint4 v[Traits::kStages][Traits::kTileChunks];
  RingBarriers<Traits> k_ring, v_ring;
  Mbarrier landed;  // one arrival: a V tile of which rows are cleared before it is full
  Work work;        // of the warps with rows
  bool merges;      // whether this block merges the parts of the tile
};

/// Place of the n-th key tile of a block in the rings.
template <int kStages>
struct RingPlace {
  int stage;
  unsigned parity;  // of the phase of its barriers
  __device__ explicit RingPlace(int n)
      : stage(n % kStages), parity(static_cast<unsigned>(n / kStages) % 2) {}
};

}  // namespace lampo::cuda
