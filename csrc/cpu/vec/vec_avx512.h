// SPDX-License-Identifier: Apache-2.0
// F32 in a 512-bit register: AVX-512 F, BW, DQ, VL and BF16.
#pragma once

#include <immintrin.h>

#include "common/numeric.h"

namespace lampo::cpu::LAMPO_ISA {

static constexpr bool kHasDotBF16 = true;

struct F32 {
  static constexpr int kWidth = 16;
  __m512 v;
  F32() : v(_mm512_setzero_ps()) {}
  explicit F32(float x) : v(_mm512_set1_ps(x)) {}
  explicit F32(__m512 x) : v(x) {}
};

static inline F32 operator+(F32 a, F32 b) { return F32(_mm512_add_ps(a.v, b.v)); }
static inline F32 operator-(F32 a, F32 b) { return F32(_mm512_sub_ps(a.v, b.v)); }
static inline F32 operator*(F32 a, F32 b) { return F32(_mm512_mul_ps(a.v, b.v)); }
static inline F32 operator/(F32 a, F32 b) { return F32(_mm512_div_ps(a.v, b.v)); }
static inline F32 operator-(F32 a) { return F32(_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))); }
static inline F32 in_register(F32 a) {
  asm("" : "+v"(a.v));
  return a;
}
static inline F32 fma(F32 a, F32 b, F32 c) { return F32(_mm512_fmadd_ps(a.v, b.v, c.v)); }
static inline F32 dot_bf16(F32 a, F32 b, F32 c) {
  return F32(
      _mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v)));
}
static inline F32 max(F32 a, F32 b) { return F32(_mm512_max_ps(a.v, b.v)); }
static inline F32 min(F32 a, F32 b) { return F32(_mm512_min_ps(a.v, b.v)); }
static inline F32 round_even(F32 a) {
  return F32(_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline float reduce_add(F32 a) { return _mm512_reduce_add_ps(a.v); }
/// Sums of a, b, c and d, in the order of reduce_add, in the first four lanes.
static inline F32 reduce_add(F32 a, F32 b, F32 c, F32 d) {
  const auto halves = [](F32 x, F32 y) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(x.v, y.v, 0x44),
                         _mm512_shuffle_f32x4(x.v, y.v, 0xee));
  };
  const __m512 ab = halves(a, b), cd = halves(c, d);
  __m512 sum =
      _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0x4e));
  sum = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0xb1));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
  return F32(_mm512_permutexvar_ps(firsts, sum));
}
static inline float reduce_max(F32 a) { return _mm512_reduce_max_ps(a.v); }
static inline void store_quad_max(float* to, F32 a) {
  __m512 m = _mm512_max_ps(a.v, _mm512_permute_ps(a.v, 0xb1));
  m = _mm512_max_ps(m, _mm512_permute_ps(m, 0x4e));
  _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, m)));
}
static inline F32 exp2_int(F32 n) {
  const __m512i bits =
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
  return F32(_mm512_castsi512_ps(bits));
}
static inline F32 select_less(F32 a, F32 b, F32 x, F32 y) {
  return F32(_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v));
}

static inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
static inline F32 widen_bf16(__m256i bits) {
  return F32(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
}

/// Widens E4M3 codes in the low bytes of the lanes; other bytes are ignored.
static inline F32 widen_f8(__m512i codes) {
  const __m512i magnitude = _mm512_and_si512(codes, _mm512_set1_epi32(0x7f));
  const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(codes, _mm512_set1_epi32(0x80)), 24);
  const __m512 scaled = _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(magnitude, 20)),
                                      _mm512_set1_ps(0x1p120f));
  const __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
  const __m512i bits =
      _mm512_mask_blend_epi32(nan, _mm512_castps_si512(scaled), _mm512_set1_epi32(0x7fc00000));
  return F32(_mm512_castsi512_ps(_mm512_or_si512(bits, sign)));
}

static inline F32 load(const float* p) { return F32(_mm512_loadu_ps(p)); }
static inline F32 load(const BF16* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline F32 load(const F16* p) {
  return F32(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
static inline F32 load(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return F32(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
}
static inline F32 load(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return F32(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
}
static inline F32 load(const F8E4M3* p) {
  return widen_f8(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline F32 load_twice(const float* p) {
  const __m512i order = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return F32(_mm512_permutexvar_ps(order, _mm512_castps256_ps512(_mm256_loadu_ps(p))));
}
static inline F32 load_pair(const float* p) {
  double pair;
  memcpy(&pair, p, sizeof(pair));
  return F32(_mm512_castpd_ps(_mm512_set1_pd(pair)));
}
/// By float16, which has a bit of the exponent more: bias 15, not 7.
static inline void load_f8_words(const uint8_t* p, F32& even, F32& odd) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const auto widen = [](__m256i upper) {  // codes in the upper bytes of 16 bits
    const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(0xbf80));
    return F32(_mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(upper, 1), mask)));
  };
  even = widen(_mm256_slli_epi16(words, 8));
  odd = widen(words);
}
static inline F32 load_n(const float* p, int n) {
  return F32(_mm512_maskz_loadu_ps(first_lanes(n), p));
}
static inline F32 load_n(const BF16* p, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
static inline F32 load_n(const F16* p, int n) {
  return F32(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p)));
}
static inline F32 load_n(const int8_t* p, int n) {
  return F32(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p))));
}
static inline F32 load_n(const uint8_t* p, int n) {
  return F32(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p))));
}
static inline F32 load_pairs(const BF16* p) {
  return F32(_mm512_loadu_ps(reinterpret_cast<const float*>(p)));
}
static inline F32 load_pairs_n(const BF16* p, int n) {
  const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << n) - 1);
  return F32(_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p)));
}
static inline F32 load_n(const F8E4M3* p, int n) {
  return widen_f8(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p)));
}

/// Not vcvtneps2bf16, which flushes subnormals: all ISAs round alike.
static inline __m256i narrow_bf16(F32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
}
static inline __m256i narrow_f16(F32 a) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline __m128i narrow_i8(F32 a) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)); }
/// Rounds as to_f8e4m3: normal numbers in their bits, subnormals by adding 2^14.
static inline __m128i narrow_f8(F32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
  const __m512i rebias = _mm512_set1_epi32(0x7ffff - 0x3c000000);
  __m512i code = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(magnitude, rebias), odd), 20);
  const __m512 shifted = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1p14f));
  const __mmask16 small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x3c800000));
  code = _mm512_mask_sub_epi32(code, small, _mm512_castps_si512(shifted),
                               _mm512_set1_epi32(0x46800000));
  const __mmask16 large = _mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(0x43e00000));
  code = _mm512_mask_blend_epi32(large, code, _mm512_set1_epi32(0x7e));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  code = _mm512_mask_blend_epi32(nan, code, _mm512_set1_epi32(0x7f));
  return _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign));
}

static inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
static inline void store(BF16* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a));
}
static inline void store(F16* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_f16(a));
}
static inline void store(F8E4M3* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_f8(a));
}
static inline void store(int8_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_i8(a));
}
static inline void store_n(float* p, F32 a, int n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
static inline void store_n(BF16* p, F32 a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_bf16(a));
}
static inline void store_n(F16* p, F32 a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_f16(a));
}
static inline void store_n(F8E4M3* p, F32 a, int n) {
  _mm_mask_storeu_epi8(p, first_lanes(n), narrow_f8(a));
}
static inline void store_n(int8_t* p, F32 a, int n) {
  _mm_mask_storeu_epi8(p, first_lanes(n), narrow_i8(a));
}

}  // namespace lampo::cpu::LAMPO_ISA
