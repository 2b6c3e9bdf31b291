// SPDX-License-Identifier: Apache-2.0
// Order of a kernel among those of its stream, where its launch lets it begin early
// (Launch::begins_early). From sm_90 on; elsewhere kernels do not overlap.
#pragma once

namespace lampo::cuda {

/// Lets the next kernel of the stream begin once all blocks have come here, then waits until all
/// earlier kernels have ended and their stores are visible. Every thread calls it before its first
/// access to memory that kernels write.
__device__ inline void wait_for_stream() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace lampo::cuda
