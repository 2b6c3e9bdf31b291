// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/cluster.cuh.
#pragma once

#include "cuda_runtime.h"

namespace lampo::cuda {

inline unsigned cluster_rank() { return simt::cluster_rank(); }

inline void sync_cluster() { simt::sync_cluster(); }

template <class T>
inline T* map_shared(T* address, unsigned rank) {
  return static_cast<T*>(simt::map_shared(address, rank));
}

}  // namespace lampo::cuda
