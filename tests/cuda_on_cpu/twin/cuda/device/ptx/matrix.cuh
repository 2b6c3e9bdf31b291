// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/matrix.cuh: every lane hands over its registers, and computes
// its elements of the result from all of them. Sums of float run in the order of k; hardware's
// order and rounding differ.
#pragma once

#include <type_traits>

#include "common/numeric.h"
#include "cuda/device/fragment.cuh"
#include "cuda_runtime.h"

namespace lampo::cuda {

template <bool kTransposed = false>
inline void load_matrices(uint32_t (&reg)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) simt::fail("ldmatrix: row not aligned to 16");
  if (!simt::in_shared(row, 16)) simt::fail("ldmatrix: row not in shared memory");
  const auto rows = simt::exchange("ldmatrix", 0xffffffffu, static_cast<const uint16_t*>(row));
  const unsigned g = simt::lane_index() / 4, t = simt::lane_index() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const auto element = [&](unsigned r, unsigned c) -> uint32_t { return rows[8 * i + r][c]; };
    reg[i] = kTransposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                         : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
  }
}

/// Element i of a register.
template <class T>
inline auto element(uint32_t reg, int i) {
  if constexpr (std::is_same_v<T, int8_t>) {
    return static_cast<int32_t>(static_cast<int8_t>(reg >> 8 * i));
  } else {
    return to_float(T{static_cast<uint16_t>(reg >> 16 * i)});
  }
}

template <class T, class C>
inline void multiply_add(FragmentC<C>& c, const FragmentA& a, const FragmentB& b) {
  static_assert(std::is_same_v<C, std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>>);
  struct Fragments {
    FragmentA a;
    FragmentB b;
  };
  const auto from = simt::exchange("mma.sync", 0xffffffffu, Fragments{a, b});
  constexpr int kPer = 4 / sizeof(T);
  constexpr int kK = 8 * kPer;
  const int g = static_cast<int>(simt::lane_index()) / 4;
  const int t = static_cast<int>(simt::lane_index()) % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2);
    const int column = 2 * t + i % 2;
    for (int k = 0; k < kK; ++k) {
      const int half = k / (kK / 2), owner = k % (kK / 2) / kPer, at = k % kPer;
      const uint32_t left = from[row % 8 * 4 + owner].a.reg[2 * half + row / 8];
      const uint32_t right = from[column * 4 + owner].b.reg[half];
      c.value[i] += element<T>(left, at) * element<T>(right, at);
    }
  }
}

inline FragmentC<int32_t> multiply_int8(const FragmentA& a, const FragmentB& b,
                                        const FragmentC<int32_t>& c) {
  FragmentC<int32_t> sum = c;
  multiply_add<int8_t>(sum, a, b);
  return sum;
}

/// As K = 32 with zeros above.
inline FragmentC<int32_t> multiply_int8(uint32_t a0, uint32_t a1, uint32_t b,
                                        const FragmentC<int32_t>& c) {
  return multiply_int8(FragmentA{{a0, a1, 0, 0}}, FragmentB{{b, 0}}, c);
}

}  // namespace lampo::cuda
