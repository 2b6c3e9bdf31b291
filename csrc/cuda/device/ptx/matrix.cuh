// SPDX-License-Identifier: Apache-2.0
// Products of small matrices by a warp, D = A B + C: ldmatrix and mma.sync.
#pragma once

#include <cstdint>

#include "common/numeric.h"
#include "cuda/device/fragment.cuh"

namespace lampo::cuda {

/// Four 8x8 matrices of 16-bit elements from shared memory. Lane l gives the address of 16 bytes,
/// row l % 8 of matrix l / 8; register i of lane 4 g + t gets row g, columns 2 t and 2 t + 1 of
/// matrix i, or with kTransposed those of its transpose.
template <bool kTransposed = false>
__device__ inline void load_matrices(uint32_t (&reg)[4], const void* row) {
  const auto from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(reg[0]), "=r"(reg[1]), "=r"(reg[2]), "=r"(reg[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(reg[0]), "=r"(reg[1]), "=r"(reg[2]), "=r"(reg[3])
                 : "r"(from)
                 : "memory");
  }
}

/// c += a b for elements T, BF16 or F16, with sums of float, K = 16.
template <class T, class C>
__device__ inline void multiply_add(FragmentC<C>& c, const FragmentA& a, const FragmentB& b) {
  if constexpr (std::is_same_v<T, BF16>) {
    static_assert(std::is_same_v<C, float>);
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b.reg[0]), "r"(b.reg[1]));
  } else {
    static_assert(std::is_same_v<T, F16> && std::is_same_v<C, float>);
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b.reg[0]), "r"(b.reg[1]));
  }
}

/// a b + c of int8, K = 32.
__device__ inline FragmentC<int32_t> multiply_int8(const FragmentA& a, const FragmentB& b,
                                                   const FragmentC<int32_t>& c) {
  FragmentC<int32_t> d;
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d.value[0]), "=r"(d.value[1]), "=r"(d.value[2]), "=r"(d.value[3])
      : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b.reg[0]), "r"(b.reg[1]),
        "r"(c.value[0]), "r"(c.value[1]), "r"(c.value[2]), "r"(c.value[3]));
  return d;
}

/// Likewise with K = 16: registers 0 and 1 of A, or 2 and 3, and 0 of B, or 1.
__device__ inline FragmentC<int32_t> multiply_int8(uint32_t a0, uint32_t a1, uint32_t b,
                                                   const FragmentC<int32_t>& c) {
  FragmentC<int32_t> d;
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
      : "=r"(d.value[0]), "=r"(d.value[1]), "=r"(d.value[2]), "=r"(d.value[3])
      : "r"(a0), "r"(a1), "r"(b), "r"(c.value[0]), "r"(c.value[1]), "r"(c.value[2]),
        "r"(c.value[3]));
  return d;
}

}  // namespace lampo::cuda
