// SPDX-License-Identifier: Apache-2.0
// F32 in a 256-bit register: AVX2, FMA and F16C. Partial loads and stores of narrow types go
// through a small buffer, since AVX2 masks only 32-bit lanes.
#pragma once

#include <immintrin.h>

#include "common/numeric.h"

namespace lampo::cpu::LAMPO_ISA {

static constexpr bool kHasDotBF16 = false;

struct F32 {
  static constexpr int kWidth = 8;
  __m256 v;
  F32() : v(_mm256_setzero_ps()) {}
  explicit F32(float x) : v(_mm256_set1_ps(x)) {}
  explicit F32(__m256 x) : v(x) {}
};

static inline F32 operator+(F32 a, F32 b) { return F32(_mm256_add_ps(a.v, b.v)); }
static inline F32 operator-(F32 a, F32 b) { return F32(_mm256_sub_ps(a.v, b.v)); }
static inline F32 operator*(F32 a, F32 b) { return F32(_mm256_mul_ps(a.v, b.v)); }
static inline F32 operator/(F32 a, F32 b) { return F32(_mm256_div_ps(a.v, b.v)); }
static inline F32 operator-(F32 a) { return F32(_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))); }
static inline F32 in_register(F32 a) {
  asm("" : "+x"(a.v));
  return a;
}
static inline F32 fma(F32 a, F32 b, F32 c) { return F32(_mm256_fmadd_ps(a.v, b.v, c.v)); }
static inline F32 max(F32 a, F32 b) { return F32(_mm256_max_ps(a.v, b.v)); }
static inline F32 min(F32 a, F32 b) { return F32(_mm256_min_ps(a.v, b.v)); }
static inline F32 round_even(F32 a) {
  return F32(_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline float reduce_add(F32 a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float reduce_max(F32 a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
static inline void store_quad_max(float* to, F32 a) {
  __m256 m = _mm256_max_ps(a.v, _mm256_permute_ps(a.v, 0xb1));
  m = _mm256_max_ps(m, _mm256_permute_ps(m, 0x4e));
  const __m128 both = _mm_unpacklo_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  _mm_storel_pi(reinterpret_cast<__m64*>(to), both);
}
static inline F32 exp2_int(F32 n) {
  const __m256i bits =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return F32(_mm256_castsi256_ps(bits));
}
static inline F32 select_less(F32 a, F32 b, F32 x, F32 y) {
  return F32(_mm256_blendv_ps(y.v, x.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)));
}

/// All ones in the first n lanes.
static inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline F32 widen_bf16(__m128i bits) {
  return F32(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
}

/// Widens E4M3 codes in the low bytes of the lanes; other bytes are ignored.
static inline F32 widen_f8(__m256i codes) {
  const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi32(0x7f));
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(0x80)), 24);
  const __m256 scaled = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)),
                                      _mm256_set1_ps(0x1p120f));
  const __m256i nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
  const __m256i bits =
      _mm256_blendv_epi8(_mm256_castps_si256(scaled), _mm256_set1_epi32(0x7fc00000), nan);
  return F32(_mm256_castsi256_ps(_mm256_or_si256(bits, sign)));
}

static inline F32 load(const float* p) { return F32(_mm256_loadu_ps(p)); }
static inline F32 load(const BF16* p) {
  return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline F32 load(const F16* p) {
  return F32(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline F32 load(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return F32(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
}
static inline F32 load(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return F32(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
}
static inline F32 load(const F8E4M3* p) {
  return widen_f8(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
static inline F32 load_twice(const float* p) {
  const __m256i order = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  return F32(_mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), order));
}
static inline F32 load_pair(const float* p) {
  double pair;
  memcpy(&pair, p, sizeof(pair));
  return F32(_mm256_castpd_ps(_mm256_set1_pd(pair)));
}
/// By float16, which has a bit of the exponent more: bias 15, not 7.
static inline void load_f8_words(const uint8_t* p, F32& even, F32& odd) {
  const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const auto widen = [](__m128i upper) {  // codes in the upper bytes of 16 bits
    const __m128i mask = _mm_set1_epi16(static_cast<int16_t>(0xbf80));
    return F32(_mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16(upper, 1), mask)));
  };
  even = widen(_mm_slli_epi16(words, 8));
  odd = widen(words);
}
static inline F32 load_n(const float* p, int n) {
  return F32(_mm256_maskload_ps(p, first_lanes(n)));
}
template <class T>
static inline F32 load_n(const T* p, int n) {
  T buffer[F32::kWidth] = {};
  memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}

static inline __m128i narrow_bf16(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
static inline __m128i narrow_f16(F32 a) {
  return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/// The low bytes of eight words that fit a signed byte.
static inline __m128i narrow_words(__m256i words) {
  const __m128i halves =
      _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return _mm_packs_epi16(halves, halves);
}
/// Rounds as to_f8e4m3: normal numbers in their bits, subnormals by adding 2^14.
static inline __m128i narrow_f8(F32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
  const __m256i rebias = _mm256_set1_epi32(0x7ffff - 0x3c000000);
  __m256i code = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(magnitude, rebias), odd), 20);
  const __m256 shifted = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p14f));
  const __m256i tiny =
      _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x46800000));
  const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude);
  code = _mm256_blendv_epi8(code, tiny, small);
  const __m256i large = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x43dfffff));
  code = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7e), large);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  code = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7f), nan);
  // Negative codes become negative bytes, which packing with saturation preserves.
  return narrow_words(
      _mm256_or_si256(code, _mm256_and_si256(_mm256_srai_epi32(bits, 31),
                                             _mm256_set1_epi32(static_cast<int>(0xffffff80)))));
}

static inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
static inline void store(BF16* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bf16(a));
}
static inline void store(F16* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_f16(a));
}
static inline void store(F8E4M3* p, F32 a) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), narrow_f8(a));
}
static inline void store(int8_t* p, F32 a) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), narrow_words(_mm256_cvtps_epi32(a.v)));
}
static inline void store_n(float* p, F32 a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }
template <class T>
static inline void store_n(T* p, F32 a, int n) {
  T buffer[F32::kWidth];
  store(buffer, a);
  memcpy(p, buffer, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace lampo::cpu::LAMPO_ISA
