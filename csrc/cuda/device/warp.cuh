// SPDX-License-Identifier: Apache-2.0
// Communication of the lanes of a warp. Every lane takes part.
#pragma once

namespace lampo::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ inline T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

/// The value of `lane`.
template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}

__device__ inline int count_bits(unsigned bits) { return __popc(bits); }

__device__ inline bool warp_any(bool value) { return __any_sync(kAllLanes, value) != 0; }

/// The sum of this lane's value and those of the lanes before it.
template <class T>
__device__ inline T warp_prefix_sum(T value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const T other = __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(delta));
    if (lane >= delta) value += other;
  }
  return value;
}

/// Number of lanes with a true condition.
__device__ inline int count_lanes(bool predicate) {
  return __popc(__ballot_sync(kAllLanes, predicate));
}

/// Orders the lanes' accesses to memory, like a barrier of a block.
__device__ inline void sync_warp() { __syncwarp(); }

/// The sum over a warp, in every lane. Lanes are paired by a fixed butterfly, so the order of
/// additions, and with it the result, is the same in all of them.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

}  // namespace lampo::cuda
