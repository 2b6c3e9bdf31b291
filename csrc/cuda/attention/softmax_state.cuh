// SPDX-License-Identifier: Apache-2.0
// The state of a row of attention over some of its keys: RowState and acc = sum of 2^(score - m) v.
// Scores are in base-2 units. A state without keys has l = 0 and is skipped; NaN stays NaN.
#pragma once

#include "cuda/attention/layout.h"
#include "cuda/device/convert.cuh"
#include "cuda/device/ptx/arithmetic.cuh"

namespace lampo::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

__device__ inline float minus_infinity() { return -__builtin_huge_valf(); }

/// Factors of the accumulators of two states in a merge.
struct FoldWeights {
  float old, add;
};

/// run := run merged with part. States are folded one by one, in the order of their keys: the same
/// definition in the kernel and in the merge.
__device__ inline FoldWeights fold(RowState& run, const RowState& part) {
  if (part.l == 0.0f) return {1.0f, 0.0f};
  const float m = fmaxf(run.m, part.m);
  const FoldWeights weights{exp2_approximate(run.m - m), exp2_approximate(part.m - m)};
  run.l = fmaf(part.l, weights.add, run.l * weights.old);
  run.m = m;
  return weights;
}

/// Folds one element of the accumulators.
__device__ inline float fold_value(float old, float add, const FoldWeights& weights) {
  return weights.add == 0.0f ? old * weights.old : fmaf(add, weights.add, old * weights.old);
}

/// out = acc * scale, lse in natural units.
struct RowResult {
  float scale, lse;
};

__device__ inline RowResult finish(const RowState& state, const float* sink) {
  if (state.l == 0.0f) return {0.0f, minus_infinity()};
  if (sink == nullptr) return {1.0f / state.l, (state.m + log2f(state.l)) * kLn2};
  const float score = *sink * kLog2E;
  const float m = fmaxf(state.m, score);
  const float weight = exp2_approximate(state.m - m);
  const float sum = fmaf(state.l, weight, exp2_approximate(score - m));
  return {weight / sum, (m + log2f(sum)) * kLn2};
}

/// Stores four dims of a row to out; a row without visible keys is 0.
template <class T>
__device__ inline void store_out(T* out, Vector<float, 4> acc, const RowResult& result,
                                 bool aligned) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    acc.value[i] = result.scale == 0.0f ? 0.0f : acc.value[i] * result.scale;
  if (aligned) {
    store_vector(out, from_floats<T>(acc));
  } else {
    store_elements(out, from_floats<T>(acc), 4);
  }
}

}  // namespace lampo::cuda
