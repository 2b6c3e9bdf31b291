// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/arithmetic.cuh.
#pragma once

#include <cfloat>

#include "common/numeric.h"

namespace lampo::cuda {

inline float flush_subnormal(float x) { return fabsf(x) < FLT_MIN ? copysignf(0.0f, x) : x; }

inline float reciprocal(float x) { return flush_subnormal(1.0f / flush_subnormal(x)); }

inline uint32_t pack_bf16(float low, float high) {
  return to_bf16(low).bits | static_cast<uint32_t>(to_bf16(high).bits) << 16;
}

inline uint32_t pack_f16(float low, float high) {
  return to_f16(low).bits | static_cast<uint32_t>(to_f16(high).bits) << 16;
}

inline float widen_f16(uint32_t bits) { return to_float(F16{static_cast<uint16_t>(bits)}); }

}  // namespace lampo::cuda
