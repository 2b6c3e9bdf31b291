// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/tma.cuh.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <iterator>

#include "cuda/device/ptx/mbarrier.cuh"

namespace lampo::cuda {

inline void copy_box(void* to_shared, const CUtensorMap& map, const int (&at)[4],
                     Mbarrier& barrier) {
  simt::Box box{.data = map.data, .size = {}, .stride = {}, .box = {}, .at = {}};
  std::copy(std::begin(map.size), std::end(map.size), box.size);
  std::copy(std::begin(map.stride), std::end(map.stride), box.stride);
  std::copy(std::begin(map.box), std::end(map.box), box.box);
  std::copy(std::begin(at), std::end(at), box.at);
  simt::copy_box(to_shared, box, &barrier);
}

inline void fence_async_proxy() { simt::fence_async_proxy(); }

}  // namespace lampo::cuda
