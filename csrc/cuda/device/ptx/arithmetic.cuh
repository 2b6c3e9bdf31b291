// SPDX-License-Identifier: Apache-2.0
// Arithmetic instructions without an equivalent in C++, one per function.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/numeric.h"

namespace lampo::cuda {

/// 1 / x within 1 ulp; 0 in place of subnormal results.
__device__ inline float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Two floats as two neighbouring bfloat16, `low` at the lower address.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

/// Two floats as two neighbouring halves, `low` at the lower address; overflow gives infinity.
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

/// 2^x within 2 ulp; 0 in place of subnormal results.
__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Selects bytes of `value` by the four lowest hexadecimal digits of `selector`, the lowest first;
/// 4 gives a zero.
__device__ inline uint32_t select_bytes(uint32_t value, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(value), "r"(selector));
  return result;
}

/// Likewise of two words: digits 0 to 3 are bytes of `low`, 4 to 7 of `high`. Other bits of the
/// selector than its lowest 16 are ignored.
__device__ inline uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}

/// (a & b) | c, by one instruction whichever of them are constants.
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

/// a b + c of two neighbouring BF16 or F16, rounded once; subnormals count.
template <class T>
__device__ inline uint32_t multiply_add_pairs(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  if constexpr (std::is_same_v<T, BF16>) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  } else {
    static_assert(std::is_same_v<T, F16>);
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  }
  return result;
}

/// `pointer` in registers: the compiler does not compute it again wherever it is used.
template <class T>
__device__ inline T* in_register(T* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

/// The float16 in the lower half of `bits`.
__device__ inline float widen_f16(uint32_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(bits)));
  return value;
}

}  // namespace lampo::cuda
