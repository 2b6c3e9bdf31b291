// SPDX-License-Identifier: Apache-2.0
// A thread's vector of a row of any length and alignment.
#pragma once

#include "common/numeric.h"
#include "cuda/device/convert.cuh"
#include "cuda/device/copy.cuh"

namespace lampo::cuda {

template <class T>
inline constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(T));

/// N values of a row from column `begin` on; zeros past the row's end. `kAligned` also means that
/// rows hold whole vectors.
template <bool kAligned, int N, class T>
__device__ inline Vector<T, N> load_part(const T* row, int64_t begin, int64_t size) {
  if (begin >= size) return {};
  if constexpr (kAligned) {
    return load_vector<T, N>(row + begin);
  } else {
    return load_elements<T, N>(row + begin, static_cast<int>(min(size - begin, int64_t{N})));
  }
}

template <bool kAligned, class T, int N>
__device__ inline void store_part(T* row, int64_t begin, int64_t size, const Vector<T, N>& part) {
  if (begin >= size) return;
  if constexpr (kAligned) {
    store_vector(row + begin, part);
  } else {
    store_elements(row + begin, part, static_cast<int>(min(size - begin, int64_t{N})));
  }
}

/// x + residual, rounded to T.
template <class T, int N>
__device__ inline Vector<T, N> add_parts(const Vector<T, N>& x, const Vector<T, N>& residual) {
  auto sum = to_floats(x);
  const auto before = to_floats(residual);
#pragma unroll
  for (int i = 0; i < N; ++i) sum.value[i] += before.value[i];
  return from_floats<T>(sum);
}

}  // namespace lampo::cuda
