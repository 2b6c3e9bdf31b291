// SPDX-License-Identifier: Apache-2.0
// Arithmetic that C++ has no word for, an instruction a function.
#pragma once

#include <cstdint>

namespace lampo::cuda {

/// 1 / x within 1 ulp; 0 where the result would be subnormal.
__device__ inline float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Two floats to two neighbouring bfloat16, `low` at the lower address.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

/// Two floats to two neighbouring float16, `low` at the lower address.
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

/// The float16 in the lower half of `bits`.
__device__ inline float widen_f16(uint32_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(bits)));
  return value;
}

}  // namespace lampo::cuda
