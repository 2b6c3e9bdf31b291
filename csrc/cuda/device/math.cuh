// SPDX-License-Identifier: Apache-2.0
// Elementary functions, with their errors.
#pragma once

#include "cuda/device/ptx/arithmetic.cuh"

namespace lampo::cuda {

/// 1 / (1 + e^-x), within 3 ulp.
__device__ inline float sigmoid(float x) { return reciprocal(1.0f + expf(-x)); }

}  // namespace lampo::cuda
