// SPDX-License-Identifier: Apache-2.0
// Iteration over a row of any length by vectors.
#pragma once

#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

/// Calls fn(i, n) for the vectors of [0, size): n is F32::kWidth, in the last one perhaps less.
template <class Fn>
static inline void for_each_vector(int64_t size, Fn&& fn) {
  int64_t i = 0;
  for (; i + F32::kWidth <= size; i += F32::kWidth) fn(i, F32::kWidth);
  if (i < size) fn(i, static_cast<int>(size - i));
}

/// The first n lanes of a, 0 in the others.
static inline F32 keep_n(F32 a, int n) {
  float lanes[F32::kWidth];
  store(lanes, a);
  return load_n(lanes, n);
}

}  // namespace lampo::cpu::LAMPO_ISA
