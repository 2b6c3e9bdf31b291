// SPDX-License-Identifier: Apache-2.0
// Elementary functions, with their errors.
#pragma once

namespace lampo::cuda {

/// 1 / x within 1 ulp; 0 where the result would be subnormal.
__device__ inline float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// 1 / (1 + e^-x), within 3 ulp.
__device__ inline float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }

}  // namespace lampo::cuda
