// SPDX-License-Identifier: Apache-2.0
// Barriers in shared memory that count threads and bytes (mbarrier). From sm_90 on.
//
// A barrier is in phase 0, 1, 2 and so on. A phase ends once all its arrivals have come and, of the
// asynchronous copies that name the barrier, as many bytes as arrivals have announced.
#pragma once

#include <cstdint>

namespace lampo::cuda {

struct alignas(8) Mbarrier {
  uint64_t state;
};

__device__ inline unsigned shared_address(const void* address) {
  return static_cast<unsigned>(__cvta_generic_to_shared(address));
}

/// Makes a barrier of `arrivals` per phase. Copies may name it after fence_async_proxy() (tma.cuh)
/// of this thread, other threads after a barrier of the block.
__device__ inline void init_mbarrier(Mbarrier& barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :
               : "r"(shared_address(&barrier)), "r"(arrivals)
               : "memory");
}

/// One arrival. What this thread did before is done for those that wait for the phase.
__device__ inline void arrive(Mbarrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
               :
               : "r"(shared_address(&barrier))
               : "memory");
}

/// One arrival that announces `bytes` of copies.
__device__ inline void arrive_and_expect(Mbarrier& barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

/// Waits for the end of the current phase if its number is `parity` modulo 2; if not, that of the
/// phase before is over, and the call returns.
__device__ inline void wait(Mbarrier& barrier, unsigned parity) {
  unsigned done = 0;
  do {
    asm volatile(
        "{\n\t"
        ".reg .pred p;\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t"
        "}"
        : "=r"(done)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

}  // namespace lampo::cuda
