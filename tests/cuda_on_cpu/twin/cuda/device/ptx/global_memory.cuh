// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/global_memory.cuh.
#pragma once

#include "cuda_runtime.h"

namespace lampo::cuda {

template <int kWords>
inline void load_once(uint32_t (&to)[kWords], const void* from) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4);
  if (reinterpret_cast<uintptr_t>(from) % sizeof(to) != 0) {
    simt::fail("loads from an address that is not aligned to the load's size");
  }
  for (int i = 0; i < kWords; ++i) to[i] = static_cast<const uint32_t*>(from)[i];
}

template <int kBytes>
inline void load_one(uint32_t& to, const void* from) {
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4);
  if (reinterpret_cast<uintptr_t>(from) % kBytes != 0) {
    simt::fail("loads from an address that is not aligned to the load's size");
  }
  to = 0;
  for (int i = 0; i < kBytes; ++i) {
    to |= static_cast<uint32_t>(static_cast<const uint8_t*>(from)[i]) << 8 * i;
  }
}

inline void prefetch_to_l2(const void*) {}

}  // namespace lampo::cuda
