// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/shared_memory.cuh: memory of its own for every block, of exactly
// the size that the launch asked for.
#pragma once

#include "cuda_runtime.h"

namespace lampo::cuda {

template <class SharedStorage>
inline SharedStorage& shared_storage() {
  static_assert(alignof(SharedStorage) <= 1024);
  return *static_cast<SharedStorage*>(simt::shared_memory(sizeof(SharedStorage)));
}

}  // namespace lampo::cuda
