// SPDX-License-Identifier: Apache-2.0
// cp.async: copies from global to shared memory without registers, complete after a wait.
#pragma once

namespace lampo::cuda {

/// Starts a copy of kBytes (4, 8 or 16; both addresses aligned to that) of which the first `valid`
/// are read and the others are zeros. The destination must not be accessed before wait_copies().
template <int kBytes>
__device__ inline void copy_async(void* to_shared, const void* from, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
  if constexpr (kBytes == 16) {  // .cg: past L1, which streamed data would evict
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(from), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(to), "l"(from), "n"(kBytes), "r"(valid)
                 : "memory");
  }
}

/// Makes a group of the copies that this thread started since the last call.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until all groups of this thread but the kPending youngest have arrived. Other threads see
/// them after a barrier.
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

}  // namespace lampo::cuda
