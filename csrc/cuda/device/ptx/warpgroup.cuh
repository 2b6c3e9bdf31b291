// SPDX-License-Identifier: Apache-2.0
// Warpgroups, four warps from a multiple of four on: barriers of some of a block's threads, and
// registers that warpgroups pass on. From sm_90a on.
#pragma once

namespace lampo::cuda {

/// The barrier of number kBarrier, 1 to 15, among kThreads threads of whole warps.
template <int kBarrier, int kThreads>
__device__ inline void sync_threads() {
  static_assert(kBarrier > 0 && kBarrier < 16 && kThreads % 32 == 0);
  asm volatile("bar.sync %0, %1;" : : "n"(kBarrier), "n"(kThreads) : "memory");
}

/// All warps of a warpgroup keep kRegisters per thread, fewer than the kernel began with.
template <int kRegisters>
__device__ inline void give_registers() {
  static_assert(kRegisters % 8 == 0);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(kRegisters));
}

/// All warps of a warpgroup get kRegisters per thread, and wait until as many are free.
template <int kRegisters>
__device__ inline void take_registers() {
  static_assert(kRegisters % 8 == 0);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(kRegisters));
}

}  // namespace lampo::cuda
