// SPDX-License-Identifier: Apache-2.0
// A row of logits as the sampling kernels read it: a warp a block of kSampleBlock tokens.
#pragma once

#include "common/sampling.h"
#include "cuda/device/convert.cuh"
#include "cuda/device/warp.cuh"

namespace lampo::cuda {

/// A sum of masses (common/sampling.h), in the type that atomics know.
using Mass = unsigned long long;

inline constexpr int kTokensPerLane = kSampleBlock / kWarpSize;

__device__ inline float minus_infinity() { return -__builtin_huge_valf(); }

/// Falls where l rises; -0 and 0 are equal.
__device__ inline uint32_t descending_key(float l) {
  const uint32_t bits = bits_from_float(add_rn(l, 0.0f));
  return bits & 0x80000000u ? bits : bits ^ 0x7fffffffu;
}
__device__ inline float value_of_key(uint32_t key) {
  return float_from_bits(key & 0x80000000u ? key : key ^ 0x7fffffffu);
}

/// From logits to masses: m = 2^((l - max) * scale + 40).
struct MassScale {
  float max, scale;

  /// Base-2 exponent of the probability relative to the top's.
  __device__ float exponent(float l) const { return mul_rn(sub_rn(l, max), scale); }
  __device__ float operator()(float l) const { return exp2_times_2_40(exponent(l)); }
  /// Where an exponent is among the buckets: the whole part is the bucket's number. It rises where
  /// the exponent falls: 64 buckets for every halving of the probability, the last for all less
  /// likely than 2^-32 of the top, and for NaN.
  __device__ static float place(float exponent, int num_buckets) {
    return fminf(mul_rn(exponent, -64.0f), static_cast<float>(num_buckets - 1));
  }
  __device__ int bucket(float l, int num_buckets) const {
    return static_cast<int>(place(exponent(l), num_buckets));
  }
};

/// A lane's tokens of a block: token(j) has logit l[j].
struct LaneTokens {
  float l[kTokensPerLane];
  int64_t first;
  int step;

  __device__ int64_t token(int j) const { return first + j * step; }
};

/// NaN and what lies beyond the row count as -inf; in an `infinite` row, one with a logit of +inf,
/// those are 0 and all others -inf. `kKeepNan`: NaN stays in other rows, for callers to which it is
/// the same.
template <class E>
struct LogitRow {
  const E* data;  // [size]
  int64_t size;
  bool infinite = false;

  template <bool kKeepNan = false>
  __device__ float processed(float l) const {
    if (infinite) return l == __builtin_huge_valf() ? 0.0f : minus_infinity();
    return kKeepNan || l == l ? l : minus_infinity();
  }
  __device__ float at(int64_t token) const { return processed(to_float(data[token])); }

  template <bool kKeepNan = false>
  __device__ LaneTokens load_block(int64_t block) const {
    const int64_t begin = block * kSampleBlock;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    LaneTokens tokens;
    if (begin + kSampleBlock <= size && reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0) {
      tokens.first = begin + lane * kTokensPerLane;
      tokens.step = 1;
      const auto values = to_floats(load_vector<E, kTokensPerLane>(data + tokens.first));
#pragma unroll
      for (int j = 0; j < kTokensPerLane; ++j) {
        tokens.l[j] = processed<kKeepNan>(values.value[j]);
      }
    } else {
      tokens.first = begin + lane;
      tokens.step = kWarpSize;
#pragma unroll
      for (int j = 0; j < kTokensPerLane; ++j) {
        tokens.l[j] = tokens.token(j) < size ? at(tokens.token(j)) : minus_infinity();
      }
    }
    return tokens;
  }
};

/// Log-softmax of a row: ln(2) ((l - max) log2 e) - ln(sum of masses). Infinite logits tie.
struct RawLogprob {
  float max;
  double log_sum;

  __device__ RawLogprob(float row_max, Mass mass)
      : max(row_max), log_sum(log(static_cast<double>(mass) / kMassOne)) {}

  __device__ float operator()(float l) const {
    if (max == __builtin_huge_valf()) return l == max ? static_cast<float>(-log_sum) : -max;
    return static_cast<float>(static_cast<double>(l) - max - log_sum);
  }
};

}  // namespace lampo::cuda
