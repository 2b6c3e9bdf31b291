// SPDX-License-Identifier: Apache-2.0
// Blocks of a cluster: their barrier and their view of one another's shared memory. From sm_90 on;
// elsewhere these trap.
#pragma once

#include <cstdint>

namespace lampo::cuda {

__device__ inline unsigned cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#else
  __trap();
#endif
  return rank;
}

/// Every thread of the cluster's blocks waits for all of them; orders their accesses to memory.
__device__ inline void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n\t"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
#else
  __trap();
#endif
}

/// The address in the shared memory of block `rank` that corresponds to `address` in this block's.
template <class T>
__device__ inline T* map_shared(T* address, unsigned rank) {
  uint64_t mapped = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(reinterpret_cast<uint64_t>(address)), "r"(rank));
#else
  (void)address, (void)rank;
  __trap();
#endif
  return reinterpret_cast<T*>(mapped);
}

}  // namespace lampo::cuda
