// SPDX-License-Identifier: Apache-2.0
// Barrier and sums of a block's threads (memory: ptx/shared_memory.cuh).
#pragma once

#include "cuda/device/ptx/shared_memory.cuh"
#include "cuda/device/warp.cuh"

namespace lampo::cuda {

__device__ inline void sync_block() { __syncthreads(); }

inline constexpr int kMaxWarps = 32;

struct BlockSumStorage {
  float warp[kMaxWarps];
};

/// Sum over all threads of a block of whole warps, in every thread: a butterfly within warps, then
/// one over their sums, so the order is fixed. `storage` may be reused after the next barrier.
__device__ inline float block_sum(float value, int thread, int num_threads,
                                  BlockSumStorage& storage) {
  value = warp_sum(value);
  const int lane = thread % kWarpSize;
  if (lane == 0) storage.warp[thread / kWarpSize] = value;
  sync_block();
  return warp_sum(lane < num_threads / kWarpSize ? storage.warp[lane] : 0.0f);
}

template <class T>
struct BlockScanStorage {
  T warp[kMaxWarps];
};

/// Sum over this thread and those before it; total: over all. Begins and ends with a barrier.
template <class T>
__device__ inline T block_running_sum(T value, int thread, int num_threads, T& total,
                                      BlockScanStorage<T>& storage) {
  const int lane = thread % kWarpSize, warp = thread / kWarpSize;
  value = warp_prefix_sum(value);
  sync_block();
  if (lane == kWarpSize - 1) storage.warp[warp] = value;
  sync_block();
  total = 0;
  for (int i = 0; i < num_threads / kWarpSize; ++i) {
    if (i < warp) value += storage.warp[i];
    total += storage.warp[i];
  }
  return value;
}

}  // namespace lampo::cuda
