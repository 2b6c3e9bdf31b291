// SPDX-License-Identifier: Apache-2.0
// Products of a warpgroup, D += A B, with B, and perhaps A, in shared memory: wgmma. sm_90a alone.
//
// Rows of D [64, N]: 16 by warp, as FragmentC of mma.sync (device/fragment.cuh), N / 8 of them side
// by side; A [64, 16] in registers likewise. The products run on while threads go on: until
// wait_products() neither their registers nor their shared memory may be touched.
//
// Operands in shared memory consist of lines of 64 elements, 128 bytes, in groups of eight at a
// multiple of 1024, in which the 16 bytes of number c of line l are at c ^ l % 8, as TMA writes
// them (SWIZZLE_128B). A line is of one row of A or one column of B, along K, or of one k of B,
// along the columns ("transposed").
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/numeric.h"
#include "cuda/device/fragment.cuh"
#include "cuda/device/ptx/mbarrier.cuh"

namespace lampo::cuda {

/// Descriptor of an operand: lines along K. `from`: the first line's 16 elements.
__device__ inline uint64_t lines_along_k(const void* from) {
  constexpr uint64_t kBetweenGroups = 1024;
  constexpr uint64_t kSwizzle128 = 1;
  return (shared_address(from) & 0x3ffff) >> 4 | uint64_t{1} << 16 | kBetweenGroups >> 4 << 32 |
         kSwizzle128 << 62;
}

/// Descriptor of an operand B: lines along the columns, of 16 values of k; columns 64 to 127 are
/// `between_halves` bytes behind columns 0 to 63.
__device__ inline uint64_t lines_along_columns(const void* from, unsigned between_halves) {
  constexpr uint64_t kBetweenGroups = 1024;
  constexpr uint64_t kSwizzle128 = 1;
  return (shared_address(from) & 0x3ffff) >> 4 | uint64_t{between_halves >> 4} << 16 |
         kBetweenGroups >> 4 << 32 | kSwizzle128 << 62;
}

/// The descriptor of an operand that begins `bytes`, a multiple of 16, behind.
__device__ inline uint64_t moved(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes / 16);
}

/// Comes before the first product, and again after threads touched registers of products.
__device__ inline void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Makes a group of the products since the last call.
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until all groups but the kPending youngest are done.
template <int kPending>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(kPending) : "memory");
}

/// The compiler keeps accesses to these registers on their side of this call: before
/// fence_products(), and after wait_products(). No instruction.
template <int kFragments>
__device__ inline void settle(FragmentC<float> (&c)[kFragments]) {
#pragma unroll
  for (int i = 0; i < 4 * kFragments; ++i) asm volatile("" : "+f"(c[i / 4].value[i % 4])::"memory");
}
template <int kFragments>
__device__ inline void settle(FragmentA (&a)[kFragments]) {
#pragma unroll
  for (int i = 0; i < 4 * kFragments; ++i) asm volatile("" : "+r"(a[i / 4].reg[i % 4])::"memory");
}

// Operands of asm: 4, 16 and 32 sums, in fragments from number i on.
#define LAMPO_SUMS_4(c, i) \
  "+f"(c[i].value[0]), "+f"(c[i].value[1]), "+f"(c[i].value[2]), "+f"(c[i].value[3])
#define LAMPO_SUMS_16(c, i) \
  LAMPO_SUMS_4(c, i), LAMPO_SUMS_4(c, i + 1), LAMPO_SUMS_4(c, i + 2), LAMPO_SUMS_4(c, i + 3)
#define LAMPO_SUMS_32(c, i) LAMPO_SUMS_16(c, i), LAMPO_SUMS_16(c, i + 4)
#define LAMPO_MULTIPLY_SHARED_128(TYPE, c, a, b, add)                                     \
  asm volatile(                                                                           \
      "{\n\t"                                                                             \
      ".reg .pred p;\n\t"                                                                 \
      "setp.ne.b32 p, %66, 0;\n\t"                                                        \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE                        \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
      "%64, %65, p, 1, 1, 0, 0;\n\t"                                                      \
      "}"                                                                                 \
      : LAMPO_SUMS_32(c, 0), LAMPO_SUMS_32(c, 8)                                          \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)))
#define LAMPO_MULTIPLY_REGISTERS_64(TYPE, c, a, b)                                        \
  asm volatile(                                                                           \
      "{\n\t"                                                                             \
      ".reg .pred p;\n\t"                                                                 \
      "setp.ne.b32 p, 1, 0;\n\t"                                                          \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE                         \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " \
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n\t"                                        \
      "}"                                                                                 \
      : LAMPO_SUMS_32(c, 0)                                                               \
      : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "l"(b))
#define LAMPO_MULTIPLY_REGISTERS_128(TYPE, c, a, b)                                       \
  asm volatile(                                                                           \
      "{\n\t"                                                                             \
      ".reg .pred p;\n\t"                                                                 \
      "setp.ne.b32 p, 1, 0;\n\t"                                                          \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE                        \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "  \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "  \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n\t"                                        \
      "}"                                                                                 \
      : LAMPO_SUMS_32(c, 0), LAMPO_SUMS_32(c, 8)                                          \
      : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "l"(b))

/// c [64, 128] = a b, or c + a b if `add`: a [64, 16], b [16, 128] with lines along K.
template <class T>
__device__ inline void multiply_add_shared(FragmentC<float> (&c)[16], uint64_t a, uint64_t b,
                                           bool add) {
  if constexpr (std::is_same_v<T, BF16>) {
    LAMPO_MULTIPLY_SHARED_128("bf16", c, a, b, add);
  } else {
    static_assert(std::is_same_v<T, F16>);
    LAMPO_MULTIPLY_SHARED_128("f16", c, a, b, add);
  }
}

/// c [64, 8 kFragments] += a b: a [64, 16], b [16, 8 kFragments] with lines along the columns.
template <class T, int kFragments>
__device__ inline void multiply_add_registers(FragmentC<float> (&c)[kFragments], const FragmentA& a,
                                              uint64_t b) {
  static_assert(kFragments == 8 || kFragments == 16);
  if constexpr (std::is_same_v<T, BF16> && kFragments == 8) {
    LAMPO_MULTIPLY_REGISTERS_64("bf16", c, a, b);
  } else if constexpr (std::is_same_v<T, BF16>) {
    LAMPO_MULTIPLY_REGISTERS_128("bf16", c, a, b);
  } else if constexpr (kFragments == 8) {
    static_assert(std::is_same_v<T, F16>);
    LAMPO_MULTIPLY_REGISTERS_64("f16", c, a, b);
  } else {
    static_assert(std::is_same_v<T, F16>);
    LAMPO_MULTIPLY_REGISTERS_128("f16", c, a, b);
  }
}

#undef LAMPO_SUMS_4
#undef LAMPO_SUMS_16
#undef LAMPO_SUMS_32
#undef LAMPO_MULTIPLY_SHARED_128
#undef LAMPO_MULTIPLY_REGISTERS_64
#undef LAMPO_MULTIPLY_REGISTERS_128

}  // namespace lampo::cuda
