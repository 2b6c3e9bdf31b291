// SPDX-License-Identifier: Apache-2.0
// Copies of boxes of a tensor to shared memory by the tensor memory accelerator, TMA. From sm_90
// on. Tensor maps: cuda/runtime/tensor_map.h.
//
// TMA and wgmma access memory by the "asynchronous proxy". It sees what TMA wrote, but not what
// threads wrote, unless they call fence_async_proxy() afterwards.
#pragma once

#include <cuda.h>

#include "cuda/device/ptx/mbarrier.cuh"

namespace lampo::cuda {

/// Starts the copy of a box that begins at the coordinates `at`, the innermost first; elements
/// outside of the tensor are zeros. `barrier` gets all bytes of the box, zeros too. The bytes are
/// there for threads that have waited for its phase. `to_shared`: a multiple of 1024.
__device__ inline void copy_box(void* to_shared, const CUtensorMap& map, const int (&at)[4],
                                Mbarrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5}], [%6];"
      :
      : "r"(shared_address(to_shared)), "l"(reinterpret_cast<uint64_t>(&map)), "r"(at[0]),
        "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(shared_address(&barrier))
      : "memory");
}

/// Shows this thread's earlier accesses to shared memory to the asynchronous proxy.
__device__ inline void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace lampo::cuda
