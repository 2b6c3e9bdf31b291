// SPDX-License-Identifier: Apache-2.0
// Lane masks from comparisons of F32, selection by them, and exact sums, for scans of a row of
// logits. One of three headers defines it, each inside namespace lampo::cpu::<isa>:
//
//   Mask                      one truth value per lane
//   greater(a, b), at_least_mask(a, b), equal(a, b)    false where either is NaN
//   a & b, a | b, and_not(a, b) (a and not b), lane_bits(mask), mask_from_bits(bits), first(n)
//   blend(mask, x, y)         mask ? x : y
//   compress(out, a, mask)    stores the chosen lanes side by side; may write kWidth floats
//   low_bits_to_exponent(a)   as in common/deterministic_math.h
//   fixed_lanes(a)            round_to_u64 of every lane
//   FixedSum                  exact sums of those: add(lanes), add(lanes, mask), total()
#pragma once

#include "common/deterministic_math.h"
#include "cpu/vec/vec.h"

#if defined(__AVX512F__)
#include "cpu/vec/mask_avx512.h"
#elif defined(__AVX2__)
#include "cpu/vec/mask_avx2.h"
#else
#include "cpu/vec/mask_baseline.h"
#endif

namespace lampo::cpu::LAMPO_ISA {

static inline F32 add_rn(F32 a, F32 b) { return a + b; }
static inline F32 sub_rn(F32 a, F32 b) { return a - b; }
static inline F32 mul_rn(F32 a, F32 b) { return a * b; }
/// a, but at least `floor`; `floor` where a is NaN: max gives its second operand then.
static inline F32 at_least(F32 a, F32 floor) { return max(a, floor); }

/// n lanes, -inf in the rest.
template <class T>
static inline F32 load_or_lowest(const T* p, int n) {
  if (n == F32::kWidth) return load(p);
  return blend(first(n), load_n(p, n), F32(-__builtin_inff()));
}

}  // namespace lampo::cpu::LAMPO_ISA
