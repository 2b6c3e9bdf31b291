// SPDX-License-Identifier: Apache-2.0
// Products of pairs of 16-bit numbers, twice as many per instruction as float products. Pairs<T>
// supplies them for a cache of type T. It is defined if kHasDotBF16, for the types that 16 bits
// hold exactly:
//
//   BF16, F8E4M3   pairs of BF16, summed in float
//   int8_t         pairs of int16, summed in int32: exact, and no conversion but shifts
//
//   kPerUnit               pair vectors in a unit (units.h) of T
//   of<kPart>(units)       pair vector kPart: the even bytes of four, then the odd ones
//   dot(a, b, c)           c + a1 b1 + a0 b0, lane by lane
//   plus(a, b), to_float(a)   operations on the sums of dot
//   store_query(to, q, n, width)   n elements, then zeros up to width: per eight units the first
//                          pairs of all of them, then the second; returns the factor that makes
//                          their products those of q
//   store_weights(to, w)   the softmax weights of a row and 64 keys as pairs; returns the factor
//   restore(acc)           puts the accumulators of 64 bytes of a row of T, which interleave()
//                          permutes, in the order of columns
#pragma once

#include "cpu/vec/units.h"

namespace lampo::cpu::LAMPO_ISA {

template <class T>
struct Pairs;

#if defined(__AVX512BF16__)

/// Operations that all types share.
struct PairBasics {
  static int lanes_of(int64_t n) { return static_cast<int>(n < 0 ? 0 : n < 16 ? n : 16); }

  /// 2^x for x <= 0, relative error below 2e-7; exactly 1 at 0, 0 at -inf; NaN stays NaN.
  static F32 exp2_nonpositive(F32 x) {
    const F32 r(_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    // Minimax polynomial of (2^r - 1) / r on [0, 1).
    F32 p(1.8671302133e-03f);
    p = fma(p, r, F32(9.0170300188e-03f));
    p = fma(p, r, F32(5.5799913321e-02f));
    p = fma(p, r, F32(2.4016445010e-01f));
    p = fma(p, r, F32(6.9315131181e-01f));
    p = fma(p, r, F32(1.0f));
    return F32(_mm512_scalef_ps(p.v, x.v));
  }

  /// Eight units of two rows; kMasked: the first `count` units, then zeros.
  template <bool kMasked>
  static Units load_units(const char* a, const char* b, int count) {
    const auto units = [&](const char* row) {
      if constexpr (!kMasked) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
      return _mm256_maskz_loadu_epi32(static_cast<__mmask8>((1u << count) - 1u), row);
    };
    return {_mm512_inserti64x4(_mm512_castsi256_si512(units(a)), units(b), 1)};
  }
  /// Units [0, 4) of the first `count` bytes of 16 rows, then zeros.
  static void load_transposed(const char* const* rows, int64_t offset, int64_t count,
                              Units* units) {
    const __mmask16 mask = static_cast<__mmask16>(count >= 16 ? 0xffff
                                                  : count > 0 ? (1u << count) - 1u
                                                              : 0u);
    const auto quarter = [&](int row) { return _mm_maskz_loadu_epi8(mask, rows[row] + offset); };
    const auto quarters = [&](int row) {
      __m512i v = _mm512_castsi128_si512(quarter(row));
      v = _mm512_inserti32x4(v, quarter(row + 4), 1);
      v = _mm512_inserti32x4(v, quarter(row + 8), 2);
      return _mm512_inserti32x4(v, quarter(row + 12), 3);
    };
    const __m512i a = quarters(0), b = quarters(1), c = quarters(2), d = quarters(3);
    const __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    const __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    units[0].v = _mm512_unpacklo_epi64(ab_low, cd_low);
    units[1].v = _mm512_unpackhi_epi64(ab_low, cd_low);
    units[2].v = _mm512_unpacklo_epi64(ab_high, cd_high);
    units[3].v = _mm512_unpackhi_epi64(ab_high, cd_high);
  }
  /// Eight floats, twice.
  static F32 load_twice(const float* p) { return F32(_mm512_broadcast_f32x8(_mm256_loadu_ps(p))); }

  /// Sums of eight lanes, first to last. sums[j] holds the lanes of row key_of(j), then those of
  /// row key_of(j) + 4.
  static constexpr int key_of(int j) { return j < 4 ? j : j + 4; }
  template <class P>
  static F32 add_lanes(const F32* sums) {
    __m512d halves[8];
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(sums[i].v, sums[i + 1].v));
      const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(sums[i].v, sums[i + 1].v));
      const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(sums[i + 2].v, sums[i + 3].v));
      const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(sums[i + 2].v, sums[i + 3].v));
      halves[i] = _mm512_unpacklo_pd(a, c);
      halves[i + 1] = _mm512_unpackhi_pd(a, c);
      halves[i + 2] = _mm512_unpacklo_pd(b, d);
      halves[i + 3] = _mm512_unpackhi_pd(b, d);
    }
    const auto lane = [&](int i) {
      const __m512 x = _mm512_castpd_ps(halves[i % 4]), y = _mm512_castpd_ps(halves[i % 4 + 4]);
      return F32(i < 4 ? _mm512_shuffle_f32x4(x, y, 0x88) : _mm512_shuffle_f32x4(x, y, 0xdd));
    };
    F32 sum = lane(0);
#pragma GCC unroll 7
    for (int i = 1; i < 8; ++i) sum = P::plus(sum, lane(i));
    return sum;
  }

  /// Interleaves 16-bit units of the next `count` bytes of two rows, zeros beyond them.
  static void interleave(const char* a, const char* b, int64_t count, Units* low, Units* high) {
    const __mmask64 mask = count >= 64 ? ~0ull : (1ull << count) - 1;
    const __m512i from_a = _mm512_maskz_loadu_epi8(mask, a);
    const __m512i from_b = _mm512_maskz_loadu_epi8(mask, b);
    low->v = _mm512_unpacklo_epi16(from_a, from_b);
    high->v = _mm512_unpackhi_epi16(from_a, from_b);
  }
};

/// Stores 32 words as pairs; kBytes: first the even ones, as of<0> has them, then the odd ones.
template <bool kBytes>
static inline void store_words(float* to, __m256i first, __m256i second) {
  __m512i words = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  if constexpr (kBytes) {
    alignas(64) static constexpr int16_t kOrder[32] = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20,
                                                       22, 24, 26, 28, 30, 1,  3,  5,  7,  9,  11,
                                                       13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
    words = _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), words);
  }
  _mm512_storeu_si512(to, words);
}

/// Permutes four accumulators, of even and odd bytes of interleave()'s low, then high, to 64
/// columns.
static inline void restore_bytes(float* acc) {
  const __m512 low_even = load(acc).v, low_odd = load(acc + 16).v;
  const __m512 high_even = load(acc + 32).v, high_odd = load(acc + 48).v;
  const __m512 a = _mm512_unpacklo_ps(low_even, low_odd), b = _mm512_unpackhi_ps(low_even, low_odd);
  const __m512 c = _mm512_unpacklo_ps(high_even, high_odd);
  const __m512 d = _mm512_unpackhi_ps(high_even, high_odd);
  const __m512 ab_low = _mm512_shuffle_f32x4(a, b, 0x44),
               ab_high = _mm512_shuffle_f32x4(a, b, 0xee);
  const __m512 cd_low = _mm512_shuffle_f32x4(c, d, 0x44),
               cd_high = _mm512_shuffle_f32x4(c, d, 0xee);
  store(acc, F32(_mm512_shuffle_f32x4(ab_low, cd_low, 0x88)));
  store(acc + 16, F32(_mm512_shuffle_f32x4(ab_low, cd_low, 0xdd)));
  store(acc + 32, F32(_mm512_shuffle_f32x4(ab_high, cd_high, 0x88)));
  store(acc + 48, F32(_mm512_shuffle_f32x4(ab_high, cd_high, 0xdd)));
}

struct BF16Products : PairBasics {
  static F32 dot(F32 a, F32 b, F32 c) { return dot_bf16(a, b, c); }
  static F32 plus(F32 a, F32 b) { return a + b; }
  static F32 to_float(F32 sums) { return sums; }
  template <bool kBytes, class Q>
  static float store_query_as(float* to, const Q* q, int64_t n, int64_t width) {
    for (int64_t i = 0; i < width; i += 32) {
      store_words<kBytes>(to + i / 2, narrow_bf16(load_n(q + i, lanes_of(n - i))),
                          narrow_bf16(load_n(q + i + 16, lanes_of(n - i - 16))));
    }
    return 1.0f;
  }
  static float store_weights(float* to, const F32 (&w)[4]) {
    for (int i = 0; i < 2; ++i) {
      const __m512bh pairs = _mm512_cvtne2ps_pbh(w[2 * i + 1].v, w[2 * i].v);
      _mm512_storeu_si512(to + 16 * i, reinterpret_cast<__m512i>(pairs));
    }
    return 1.0f;
  }
};

template <>
struct Pairs<BF16> : BF16Products {
  static constexpr bool kInteger = false;
  static constexpr int kPerUnit = 1;
  template <int kPart>
  static F32 of(Units units) {
    return F32(_mm512_castsi512_ps(units.v));
  }
  template <class Q>
  static float store_query(float* to, const Q* q, int64_t n, int64_t width) {
    return store_query_as<false>(to, q, n, width);
  }
  static void restore(float* acc) {
    const __m512 low = load(acc).v, high = load(acc + 16).v;
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    store(acc, F32(_mm512_permutex2var_ps(low, first, high)));
    store(acc + 16, F32(_mm512_permutex2var_ps(low, second, high)));
  }
};

template <>
struct Pairs<F8E4M3> : BF16Products {
  static constexpr bool kInteger = false;
  static constexpr int kPerUnit = 2;
  template <int kPart>
  static F32 of(Units units) {
    const __m512i codes = kPart == 0 ? units.v : _mm512_srli_epi16(units.v, 8);
    const __m512i magnitude = _mm512_and_si512(codes, _mm512_set1_epi16(0x7f));
    // Normal numbers: the exponent's bias becomes 127. The seven subnormals (k 2^-9): a table.
    __m512i bits = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
    const __m512i subnormals = _mm512_broadcast_i32x4(
        _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    const __mmask32 small = _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8));
    bits = _mm512_mask_permutexvar_epi16(bits, small, magnitude, subnormals);
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
    bits = _mm512_mask_mov_epi16(bits, nan, _mm512_set1_epi16(0x7fc0));
    const __m512i sign = _mm512_slli_epi16(codes, 8);
    const __m512i top = _mm512_set1_epi16(static_cast<int16_t>(0x8000));
    return F32(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, sign, top, 0xf8)));
  }
  template <class Q>
  static float store_query(float* to, const Q* q, int64_t n, int64_t width) {
    return store_query_as<true>(to, q, n, width);
  }
  static void restore(float* acc) { restore_bytes(acc); }
};

/// Sums stay below 2^31: 256 elements of a head times 128 * 32767, and fewer keys.
template <>
struct Pairs<int8_t> : PairBasics {
  static constexpr bool kInteger = true;
  static constexpr int kPerUnit = 2;
  /// Assembly, since GCC 12 copies every accumulator if it knows that a float register has
  /// integers.
  static F32 dot(F32 a, F32 b, F32 c) {
    asm("vpdpwssd %2, %1, %0" : "+v"(c.v) : "v"(a.v), "v"(b.v));
    return c;
  }
  static F32 plus(F32 a, F32 b) {
    return F32(
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v))));
  }
  static F32 to_float(F32 sums) { return F32(_mm512_cvtepi32_ps(_mm512_castps_si512(sums.v))); }
  template <int kPart>
  static F32 of(Units units) {
    const __m512i top = kPart == 0 ? _mm512_slli_epi16(units.v, 8) : units.v;
    return F32(_mm512_castsi512_ps(_mm512_srai_epi16(top, 8)));
  }
  static __m256i narrow(F32 a) { return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a.v)); }
  template <class Q>
  static float store_query(float* to, const Q* q, int64_t n, int64_t width) {
    F32 largest, sum;
    for (int64_t i = 0; i < n; i += 16) {
      const F32 x = load_n(q + i, lanes_of(n - i));
      largest = max(largest, max(x, -x));
      sum = sum + x;
    }
    const float absmax = reduce_max(largest);
    const F32 inverse(absmax > kTiny ? kLimit / absmax : 0.0f);
    for (int64_t i = 0; i < width; i += 32) {
      store_words<true>(to + i / 2, narrow(load_n(q + i, lanes_of(n - i)) * inverse),
                        narrow(load_n(q + i + 16, lanes_of(n - i - 16)) * inverse));
    }
    // The added term is 0, or NaN if q has a NaN or an infinity.
    return (absmax > kTiny ? absmax / kLimit : 1.0f) + 0.0f * reduce_add(sum);
  }
  static float store_weights(float* to, const F32 (&w)[4]) {
    F32 largest;
    for (int i = 0; i < 4; ++i) largest = max(largest, max(w[i], -w[i]));
    const float absmax = reduce_max(largest);
    const F32 inverse(absmax > kTiny ? kLimit / absmax : 0.0f);
    for (int i = 0; i < 4; i += 2) {
      store_words<false>(to + 8 * i, narrow(w[i] * inverse), narrow(w[i + 1] * inverse));
    }
    return absmax / kLimit;
  }
  static void restore(float* acc) { restore_bytes(acc); }

 private:
  static constexpr float kLimit = 32767.0f;
  static constexpr float kTiny = 1e-30f;  // smaller maxima count as 0: the inverse would overflow
};

#endif

}  // namespace lampo::cpu::LAMPO_ISA
