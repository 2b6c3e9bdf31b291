// SPDX-License-Identifier: Apache-2.0
// Loads and stores of several values at once, 16 bytes per instruction.
#pragma once

#include <cstdint>

namespace lampo::cuda {

inline constexpr int kVectorBytes = 16;

/// N values in registers, loaded and stored in pieces of up to 16 bytes.
template <class T, int N>
struct alignas(N * sizeof(T) < kVectorBytes ? N * sizeof(T) : kVectorBytes) Vector {
  T value[N];
};

/// Loads N values; `from` is aligned as Vector<T, N>.
template <class T, int N>
__device__ inline Vector<T, N> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

/// Loads the first `count` of N values, of any alignment; zeros follow.
template <class T, int N>
__device__ inline Vector<T, N> load_elements(const T* from, int count) {
  Vector<T, N> result = {};
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < count) result.value[i] = from[i];
  }
  return result;
}

/// Stores N values; `to` is aligned as Vector<T, N>.
template <class T, int N>
__device__ inline void store_vector(T* to, const Vector<T, N>& from) {
  *reinterpret_cast<Vector<T, N>*>(to) = from;
}

template <class T, int N>
__device__ inline void store_elements(T* to, const Vector<T, N>& from, int count) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i < count) to[i] = from.value[i];
  }
}

}  // namespace lampo::cuda
