// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/warpgroup.cuh. There are registers enough.
#pragma once

#include "cuda_runtime.h"

namespace lampo::cuda {

template <int kBarrier, int kThreads>
inline void sync_threads() {
  static_assert(kBarrier > 0 && kBarrier < 16 && kThreads % 32 == 0);
  simt::sync_threads(kBarrier, kThreads);
}

template <int kRegisters>
inline void give_registers() {}

template <int kRegisters>
inline void take_registers() {}

}  // namespace lampo::cuda
