// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/vec/vec_avx512.h"

namespace lampo::cpu::LAMPO_ISA {

struct Mask {
  __mmask16 v;
};

static inline Mask greater(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
static inline Mask at_least_mask(F32 a, F32 b) {
  return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)};
}
static inline Mask equal(F32 a, F32 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
static inline Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & b.v)}; }
static inline Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.v | b.v)}; }
static inline Mask and_not(Mask a, Mask b) { return {static_cast<__mmask16>(a.v & ~b.v)}; }
/// Written by hand: if GCC 12 spills a widened mask, it stores 16 bits and reads 32.
static inline uint32_t lane_bits(Mask a) {
  uint32_t bits;
  asm("kmovw %1, %0" : "=r"(bits) : "k"(a.v));
  return bits;
}
static inline Mask mask_from_bits(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
static inline Mask first(int n) { return {first_lanes(n)}; }
static inline F32 blend(Mask mask, F32 x, F32 y) {
  return F32(_mm512_mask_blend_ps(mask.v, y.v, x.v));
}
// Compresses in a register: the form that stores to memory is slow on some CPUs.
static inline void compress(float* out, F32 a, Mask mask) {
  _mm512_storeu_ps(out, _mm512_maskz_compress_ps(mask.v, a.v));
}
static inline F32 low_bits_to_exponent(F32 a) {
  return F32(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23)));
}

struct FixedLanes {
  __m512i low, high;  // eight lanes each
};
static inline FixedLanes fixed_lanes(F32 a) {
  return {_mm512_cvtps_epi64(_mm512_castps512_ps256(a.v)),
          _mm512_cvtps_epi64(_mm512_extractf32x8_ps(a.v, 1))};
}

class FixedSum {
 public:
  void add(FixedLanes a) {
    low_ = _mm512_add_epi64(low_, a.low);
    high_ = _mm512_add_epi64(high_, a.high);
  }
  void add(FixedLanes a, Mask mask) {
    low_ = _mm512_mask_add_epi64(low_, static_cast<__mmask8>(mask.v), low_, a.low);
    high_ = _mm512_mask_add_epi64(high_, static_cast<__mmask8>(mask.v >> 8), high_, a.high);
  }
  uint64_t total() const {
    return static_cast<uint64_t>(_mm512_reduce_add_epi64(_mm512_add_epi64(low_, high_)));
  }

 private:
  __m512i low_ = _mm512_setzero_si512();
  __m512i high_ = _mm512_setzero_si512();
};

}  // namespace lampo::cpu::LAMPO_ISA
