// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/vec/vec_avx2.h"

namespace lampo::cpu::LAMPO_ISA {

struct Mask {
  __m256 v;  // all ones or all zeros per lane
};

static inline Mask greater(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
static inline Mask at_least_mask(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
static inline Mask equal(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
static inline Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
static inline Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.v, b.v)}; }
static inline Mask and_not(Mask a, Mask b) { return {_mm256_andnot_ps(b.v, a.v)}; }
static inline uint32_t lane_bits(Mask a) { return static_cast<uint32_t>(_mm256_movemask_ps(a.v)); }
static inline Mask mask_from_bits(uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(bits)), lane);
  return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane))};
}
static inline Mask first(int n) { return {_mm256_castsi256_ps(first_lanes(n))}; }
static inline F32 blend(Mask mask, F32 x, F32 y) { return F32(_mm256_blendv_ps(y.v, x.v, mask.v)); }

/// Lane numbers of the set bits, lowest first.
static inline __m256i set_lanes(uint32_t bits) {
  const uint64_t bytes = _pdep_u64(bits, 0x0101010101010101ull) * 0xff;
  const uint64_t lanes = _pext_u64(0x0706050403020100ull, bytes);
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(lanes)));
}
static inline void compress(float* out, F32 a, Mask mask) {
  _mm256_storeu_ps(out, _mm256_permutevar8x32_ps(a.v, set_lanes(lane_bits(mask))));
}
static inline F32 low_bits_to_exponent(F32 a) {
  return F32(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 23)));
}

struct FixedLanes {
  __m256i low, high;  // four lanes each
};
/// AVX2 has no conversion to 64-bit integers: adding 2^52 in double leaves the rounded integer in
/// the low bits.
static inline FixedLanes fixed_lanes(F32 a) {
  const __m256d magic = _mm256_set1_pd(0x1p52);
  const __m256d low = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a.v)), magic);
  const __m256d high = _mm256_add_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1)), magic);
  return {_mm256_castpd_si256(_mm256_xor_pd(low, magic)),
          _mm256_castpd_si256(_mm256_xor_pd(high, magic))};
}

class FixedSum {
 public:
  void add(FixedLanes a) {
    low_ = _mm256_add_epi64(low_, a.low);
    high_ = _mm256_add_epi64(high_, a.high);
  }
  void add(FixedLanes a, Mask mask) {
    const __m256i lanes = _mm256_castps_si256(mask.v);
    const __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(lanes));
    const __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(lanes, 1));
    add(FixedLanes{_mm256_and_si256(low, a.low), _mm256_and_si256(high, a.high)});
  }
  uint64_t total() const {
    uint64_t lanes[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(low_, high_));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
  }

 private:
  __m256i low_ = _mm256_setzero_si256();
  __m256i high_ = _mm256_setzero_si256();
};

}  // namespace lampo::cpu::LAMPO_ISA
