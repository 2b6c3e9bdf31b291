// SPDX-License-Identifier: Apache-2.0
// What the lanes of a warp tell one another. Every lane takes part.
#pragma once

namespace lampo::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

/// The sum over a warp, in every lane. Lanes are paired by a fixed butterfly, so the order of
/// additions, and with it the result, is the same in all of them.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

}  // namespace lampo::cuda
