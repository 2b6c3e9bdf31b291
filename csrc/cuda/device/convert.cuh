// SPDX-License-Identifier: Apache-2.0
// Conversions between storage types and float by device instructions. They round as the functions
// of common/numeric.h; NaN stays NaN, though not bit for bit.
#pragma once

#include "common/numeric.h"
#include "cuda/device/copy.cuh"
#include "cuda/device/ptx/arithmetic.cuh"

namespace lampo::cuda {

template <class T, int N>
__device__ inline Vector<float, N> to_floats(const Vector<T, N>& from) {
  Vector<float, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) result.value[i] = to_float(from.value[i]);
  return result;
}

/// Two floats as two neighbouring BF16 or F16.
template <class T>
__device__ inline uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, BF16>) {
    return pack_bf16(low, high);
  } else {
    static_assert(std::is_same_v<T, F16>);
    return pack_f16(low, high);
  }
}

template <class T, int N>
__device__ inline Vector<T, N> from_floats(const Vector<float, N>& from) {
  Vector<T, N> result;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
      const uint32_t bits = pack<T>(from.value[i], from.value[i + 1]);
      result.value[i].bits = static_cast<uint16_t>(bits);
      result.value[i + 1].bits = static_cast<uint16_t>(bits >> 16);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) result.value[i] = from_float<T>(from.value[i]);
  }
  return result;
}

}  // namespace lampo::cuda
