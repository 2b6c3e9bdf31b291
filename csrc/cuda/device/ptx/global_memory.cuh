// SPDX-License-Identifier: Apache-2.0
// Loads from global memory with cache hints.
#pragma once

#include <cstdint>

namespace lampo::cuda {

/// Loads kWords (1, 2 or 4) times 4 bytes, aligned to their size, past L1: for memory that is read
/// once and not written during the kernel. The compiler does not move the load.
template <int kWords>
__device__ inline void load_once(uint32_t (&to)[kWords], const void* from) {
  static_assert(kWords == 1 || kWords == 2 || kWords == 4);
  const auto at = __cvta_generic_to_global(from);
  if constexpr (kWords == 4) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "l"(at));
  } else if constexpr (kWords == 2) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "l"(at));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(to[0]) : "l"(at));
  }
}

/// Loads 1, 2 or 4 bytes as load_once(), with zeros above them, through L1: for what neighbouring
/// warps read too.
template <int kBytes>
__device__ inline void load_one(uint32_t& to, const void* from) {
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4);
  const auto at = __cvta_generic_to_global(from);
  if constexpr (kBytes == 4) {
    asm volatile("ld.global.nc.L2::128B.u32 %0, [%1];" : "=r"(to) : "l"(at));
  } else if constexpr (kBytes == 2) {
    uint16_t bits;
    asm volatile("ld.global.nc.L2::128B.u16 %0, [%1];" : "=h"(bits) : "l"(at));
    to = bits;
  } else {
    asm volatile("ld.global.nc.L2::128B.u8 %0, [%1];" : "=r"(to) : "l"(at));
  }
}

/// Brings the line of an address to L2. No value is read, so the memory may be written meanwhile.
__device__ inline void prefetch_to_l2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from)));
}

}  // namespace lampo::cuda
