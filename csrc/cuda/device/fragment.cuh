// SPDX-License-Identifier: Apache-2.0
// Small matrices in the registers of a warp, in the layout of mma.sync (PTX ISA).
//
// Lane 4 g + t (g 0..7, t 0..3) holds, in 32-bit registers of n = 4 / sizeof(element) elements, the
// lower column or row in the lower bits, K = 8 n:
//   A [16, K]   register r (0..3): row g + 8 (r % 2), columns K / 2 * (r / 2) + n t ... + n - 1
//   B [K, 8]    register r (0, 1): column g, rows K / 2 * r + n t ... + n - 1
//   C, D [16, 8], 32 bits an element: 0, 1: row g, columns 2 t, 2 t + 1; 2, 3: row g + 8
#pragma once

#include <cstdint>

namespace lampo::cuda {

struct FragmentA {
  uint32_t reg[4];
};
struct alignas(8) FragmentB {  // one load gets both
  uint32_t reg[2];
};
template <class T>
struct FragmentC {
  T value[4];
};

}  // namespace lampo::cuda
