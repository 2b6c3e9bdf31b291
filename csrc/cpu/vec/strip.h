// SPDX-License-Identifier: Apache-2.0
// Sixteen rows side by side, as packed weights lie (common/weight_format.h): lane r belongs to row
// r of a strip.
//   Words             16 words of 4 bytes
//   I32x16            16 integers
//   F32x16            16 floats, made of F32s
//   dot_nibbles(w, x, start)   start + sum of w[i / 4][r][i % 4] * x[i] over 32 inputs i, for each
//                              row r; w in 0..15, x signed bytes
//   dot_bytes(w, x, start)     the same with w signed, plus kSignedDotBias * sum of x[i]: the
//                              instruction wants w unsigned, and the caller knows the sum of x
// Integer sums are exact, so every ISA gets the same ones.
#pragma once

#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

struct F32x16 {
  static constexpr int kParts = 16 / F32::kWidth;
  F32 part[kParts];
};

static inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  for (int i = 0; i < F32x16::kParts; ++i) c.part[i] = fma(a.part[i], b.part[i], c.part[i]);
  return c;
}
static inline F32x16 operator+(F32x16 a, F32x16 b) {
  for (int i = 0; i < F32x16::kParts; ++i) a.part[i] = a.part[i] + b.part[i];
  return a;
}
static inline F32x16 operator*(F32x16 a, F32 b) {
  for (int i = 0; i < F32x16::kParts; ++i) a.part[i] = a.part[i] * b;
  return a;
}
static inline F32x16 fma(F32x16 a, F32 b, F32x16 c) {
  for (int i = 0; i < F32x16::kParts; ++i) c.part[i] = fma(a.part[i], b, c.part[i]);
  return c;
}
template <class T>
static inline F32x16 load16(const T* p) {
  F32x16 a;
  for (int i = 0; i < F32x16::kParts; ++i) a.part[i] = load(p + i * F32::kWidth);
  return a;
}

#if defined(__AVX512F__)

using Words = __m512i;
struct I32x16 {
  __m512i v;
};
inline constexpr int kSignedDotBias = 128;

static inline Words load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline Words low_nibbles(Words w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
static inline Words high_nibbles(Words w) { return low_nibbles(_mm512_srli_epi16(w, 4)); }
static inline Words unsigned_bytes(Words w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
static inline __m512i broadcast_word(const int8_t* x) {
  return _mm512_broadcastd_epi32(_mm_loadu_si32(x));
}
static inline I32x16 dot_nibbles(const Words (&w)[8], const int8_t* x, int32_t start) {
  // Two chains: one would leave the multipliers waiting for their own results.
  __m512i even = _mm512_set1_epi32(start);
  __m512i odd = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    even = _mm512_dpbusd_epi32(even, w[i], broadcast_word(x + 4 * i));
    odd = _mm512_dpbusd_epi32(odd, w[i + 1], broadcast_word(x + 4 * i + 4));
  }
  return {_mm512_add_epi32(even, odd)};
}
static inline I32x16 dot_bytes(const Words (&w)[8], const int8_t* x, int32_t start) {
  return dot_nibbles(w, x, start);
}
static inline I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I32x16 times256(I32x16 a) { return {_mm512_slli_epi32(a.v, 8)}; }
static inline F32x16 to_float(I32x16 a) { return {{F32(_mm512_cvtepi32_ps(a.v))}}; }

#elif defined(__AVX2__)

struct Words {
  __m256i half[2];
};
struct I32x16 {
  __m256i half[2];
};
inline constexpr int kSignedDotBias = 0;

static inline Words load_words(const uint8_t* p) {
  return {{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))}};
}
static inline __m256i low_nibbles(__m256i w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
static inline Words low_nibbles(Words w) {
  return {{low_nibbles(w.half[0]), low_nibbles(w.half[1])}};
}
static inline Words high_nibbles(Words w) {
  return {
      {low_nibbles(_mm256_srli_epi16(w.half[0], 4)), low_nibbles(_mm256_srli_epi16(w.half[1], 4))}};
}
static inline Words unsigned_bytes(Words w) { return w; }
/// A pair of products has at most 12 bits, so eight of them fit 16: one widening per block.
static inline I32x16 dot_nibbles(const Words (&w)[8], const int8_t* x, int32_t start) {
  __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i xs = _mm256_broadcastd_epi32(_mm_loadu_si32(x + 4 * i));
    for (int h = 0; h < 2; ++h) {
      sum[h] = _mm256_add_epi16(sum[h], _mm256_maddubs_epi16(w[i].half[h], xs));
    }
  }
  const __m256i ones = _mm256_set1_epi16(1), first = _mm256_set1_epi32(start);
  return {{_mm256_add_epi32(first, _mm256_madd_epi16(sum[0], ones)),
           _mm256_add_epi32(first, _mm256_madd_epi16(sum[1], ones))}};
}
/// |w| times x with the sign of w: a pair has 15 bits.
static inline I32x16 dot_bytes(const Words (&w)[8], const int8_t* x, int32_t start) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[2] = {_mm256_set1_epi32(start), _mm256_set1_epi32(start)};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i xs = _mm256_broadcastd_epi32(_mm_loadu_si32(x + 4 * i));
    for (int h = 0; h < 2; ++h) {
      const __m256i pairs =
          _mm256_maddubs_epi16(_mm256_abs_epi8(w[i].half[h]), _mm256_sign_epi8(xs, w[i].half[h]));
      sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(pairs, ones));
    }
  }
  return {{sum[0], sum[1]}};
}
static inline I32x16 operator+(I32x16 a, I32x16 b) {
  return {{_mm256_add_epi32(a.half[0], b.half[0]), _mm256_add_epi32(a.half[1], b.half[1])}};
}
static inline I32x16 times256(I32x16 a) {
  return {{_mm256_slli_epi32(a.half[0], 8), _mm256_slli_epi32(a.half[1], 8)}};
}
static inline F32x16 to_float(I32x16 a) {
  return {{F32(_mm256_cvtepi32_ps(a.half[0])), F32(_mm256_cvtepi32_ps(a.half[1]))}};
}

#else

struct Words {
  int8_t byte[64];
};
struct I32x16 {
  int32_t lane[16];
};
inline constexpr int kSignedDotBias = 0;

static inline Words load_words(const uint8_t* p) {
  Words w;
  memcpy(w.byte, p, sizeof(w.byte));
  return w;
}
static inline Words low_nibbles(Words w) {
  for (int i = 0; i < 64; ++i) w.byte[i] &= 15;
  return w;
}
static inline Words high_nibbles(Words w) {
  for (int i = 0; i < 64; ++i) w.byte[i] = static_cast<int8_t>((w.byte[i] >> 4) & 15);
  return w;
}
static inline Words unsigned_bytes(Words w) { return w; }
static inline I32x16 dot_bytes(const Words (&w)[8], const int8_t* x, int32_t start) {
  I32x16 sum;
  for (int r = 0; r < 16; ++r) {
    sum.lane[r] = start;
    for (int i = 0; i < 32; ++i) sum.lane[r] += w[i / 4].byte[4 * r + i % 4] * x[i];
  }
  return sum;
}
static inline I32x16 dot_nibbles(const Words (&w)[8], const int8_t* x, int32_t start) {
  return dot_bytes(w, x, start);
}
static inline I32x16 operator+(I32x16 a, I32x16 b) {
  for (int r = 0; r < 16; ++r) a.lane[r] += b.lane[r];
  return a;
}
static inline I32x16 times256(I32x16 a) {
  for (int32_t& lane : a.lane) lane *= 256;
  return a;
}
static inline F32x16 to_float(I32x16 a) {
  float lanes[16];
  for (int r = 0; r < 16; ++r) lanes[r] = static_cast<float>(a.lane[r]);
  return load16(lanes);
}

#endif

}  // namespace lampo::cpu::LAMPO_ISA
