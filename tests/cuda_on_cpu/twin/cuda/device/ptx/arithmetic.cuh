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

inline float exp2_approximate(float x) { return flush_subnormal(exp2f(flush_subnormal(x))); }

inline uint32_t select_bytes(uint32_t value, uint32_t selector) {
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> 4 * i & 0xf;
    if (digit < 4) result |= (value >> 8 * digit & 0xff) << 8 * i;
  }
  return result;
}

inline uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> 4 * i & 7;
    result |= ((digit < 4 ? low : high) >> 8 * (digit % 4) & 0xff) << 8 * i;
  }
  return result;
}

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }

template <class T>
inline uint32_t multiply_add_pairs(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const auto half = [&](uint32_t x) { return to_float(T{static_cast<uint16_t>(x >> shift)}); };
    result |= static_cast<uint32_t>(from_float<T>(fmaf(half(a), half(b), half(c))).bits) << shift;
  }
  return result;
}

template <class T>
inline T* in_register(T* pointer) {
  return pointer;
}

inline float widen_f16(uint32_t bits) { return to_float(F16{static_cast<uint16_t>(bits)}); }

}  // namespace lampo::cuda
