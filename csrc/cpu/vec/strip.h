// SPDX-License-Identifier: Apache-2.0
// Integer dot products of a packed strip (common/formats/formats.h) with rows of x. A strip is
// kParts registers wide; lane r of part p belongs to its row p kWidth + r.
//
// Dots<kNibbles, kBits> multiplies a group of 32 inputs. The strip has codes of 4 bits (kNibbles)
// or 8; x has integers of kBits bits: 8, 16, or for kBits 9 (their mean) 8 with one outlier word of
// four 16-bit integers. It works in kPhases phases; a phase unpacks 8 registers of words, which
// serve many rows of x.
//   kRowBytes                           bytes of a group of x
//   store(to, q, outlier)               stores a group of x; outlier: its outlier word
//   load<kPhase>(group, words)          unpacks the words of a phase
//   add<kPhase>(group, words, x, sums)  adds their products with a group of x
//   to_float(sum, correction)           sum + correction
//   kCodeBias                           amount added to the codes before they are multiplied
// Integer sums are exact, so the sums of all ISAs are the same.
#pragma once

#include <type_traits>

#include "common/formats/formats.h"
#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

inline constexpr int kParts = kStripRows / F32::kWidth;
/// Vectors and words of a group of x; a word is four inputs, multiplied by one instruction.
inline constexpr int kGroupVectors = kGroupSize / F32::kWidth;
inline constexpr int kGroupWords = kGroupSize / 4;

/// Two 8-bit halves of an integer in -127 * 256 .. 127 * 256: q = 256 high + low.
struct HighAndLow {
  F32 high, low;
  explicit HighAndLow(F32 q)
      : high(round_even((q + F32(0.25f)) * F32(1.0f / 256.0f))), low(q - F32(256.0f) * high) {}
};

/// Outlier word of a group of x, stored behind the group's 32 low bytes: its 4 high bytes, the
/// offset of that word's weights in the group of a strip, the shift and the mask that select them.
struct OutlierWord {
  static constexpr int kHigh = 32, kOffset = 36, kShift = 40, kMask = 44, kRowBytes = 48;

  static int32_t get(const int8_t* x, int at) {
    int32_t value;
    memcpy(&value, x + at, sizeof(value));
    return value;
  }
  static void put(int8_t* x, const int8_t* highs, int word, bool nibbles) {
    const int32_t offset = (nibbles ? word % 4 : word) * kStripRows * 4;
    const int32_t shift = nibbles && word >= 4 ? 4 : 8;
    const int32_t mask = nibbles && word >= 4 ? static_cast<int32_t>(0xf0f0f0f0) : 0x0f0f0f0f;
    memcpy(x + kHigh, highs + 4 * word, 4);
    memcpy(x + kOffset, &offset, sizeof(offset));
    memcpy(x + kShift, &shift, sizeof(shift));
    memcpy(x + kMask, &mask, sizeof(mask));
  }
};

/// Storage of a group of x as bytes: the low ones, then the high ones (kBits 16) or those of the
/// outlier word (kBits 9).
template <bool kNibbles, int kBits>
struct ByteInputs {
  static constexpr int kRowBytes = kBits == 8 ? 32 : kBits == 9 ? OutlierWord::kRowBytes : 64;

  static void store(int8_t* to, const F32 (&q)[kGroupVectors], int outlier) {
    int8_t highs[kGroupSize];
    for (int i = 0; i < kGroupVectors; ++i) {
      const HighAndLow parts(q[i]);
      lampo::cpu::LAMPO_ISA::store(to + i * F32::kWidth, kBits == 8 ? q[i] : parts.low);
      if (kBits > 8) lampo::cpu::LAMPO_ISA::store(highs + i * F32::kWidth, parts.high);
    }
    if (kBits == 9) OutlierWord::put(to, highs, outlier, kNibbles);
    if (kBits == 16) memcpy(to + 32, highs, sizeof(highs));
  }
};

#if defined(__AVX512F__)

using Words = __m512i;
struct Sums {
  Words part[kParts];
};

static inline Words low_nibbles(Words w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }

/// Signed bytes + 128: the first factor of the instruction is unsigned.
static inline Words plus_128(Words w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }

template <bool kNibbles, int kBits>
struct Dots : ByteInputs<kNibbles, kBits> {
  static constexpr int kPhases = 1;
  static constexpr int kCodeBias = kNibbles ? 0 : 128;

  template <int kPhase>
  [[gnu::always_inline]] static void load(const uint8_t* group, Words (&words)[8]) {
    for (int i = 0; i < (kNibbles ? 4 : 8); ++i) {
      const Words w = _mm512_loadu_si512(group + i * 64);
      if (kNibbles) {
        words[i] = low_nibbles(w);
        words[i + 4] = low_nibbles(_mm512_srli_epi16(w, 4));
      } else {
        words[i] = plus_128(w);
      }
    }
  }
  template <int kPhase>
  [[gnu::always_inline]] static void add(const uint8_t* group, const Words (&words)[8],
                                         const int8_t* x, Sums& sums) {
    Words high = _mm512_setzero_si512();
    if (kBits == 9) high = outlier_dot(group, x);
    if (kBits == 16) high = _mm512_slli_epi32(dot(words, x + 32, high), 8);
    sums.part[0] = dot(words, x, high);
  }
  static F32 to_float(Words sum, int32_t correction) {
    return F32(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(correction))));
  }

 private:
  static Words dot(const Words (&words)[8], const int8_t* x, Words even) {
    // Two chains of additions hide the latency of the multipliers.
    Words odd = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      even = _mm512_dpbusd_epi32(even, words[i], broadcast(x + 4 * i));
      odd = _mm512_dpbusd_epi32(odd, words[i + 1], broadcast(x + 4 * i + 4));
    }
    return _mm512_add_epi32(even, odd);
  }
  static Words outlier_dot(const uint8_t* group, const int8_t* x) {
    const Words w = _mm512_loadu_si512(group + OutlierWord::get(x, OutlierWord::kOffset));
    const Words word =
        kNibbles ? _mm512_and_si512(w, broadcast(x + OutlierWord::kMask)) : plus_128(w);
    const Words high =
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), word, broadcast(x + OutlierWord::kHigh));
    return kNibbles ? _mm512_sllv_epi32(high, broadcast(x + OutlierWord::kShift))
                    : _mm512_slli_epi32(high, 8);
  }
  static Words broadcast(const int8_t* x) { return _mm512_set1_epi32(OutlierWord::get(x, 0)); }
};

#else

/// Words along the inputs that a phase unpacks for every part.
inline constexpr int kSteps = 8 / kParts;

#if defined(__AVX2__)

using Words = __m256i;
struct Sums {
  Words part[kParts];
};

static inline Words load_words(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
static inline Words low_nibbles(Words w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
static inline Words high_nibbles(Words w) { return low_nibbles(_mm256_srli_epi16(w, 4)); }
static inline Words even_bytes(Words w) { return _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8); }
static inline Words odd_bytes(Words w) { return _mm256_srai_epi16(w, 8); }
static inline Words broadcast(const int8_t* x) {
  return _mm256_broadcastd_epi32(_mm_loadu_si32(x));
}
/// Keeps the order of additions: reordered, the sums need more registers than there are.
static inline Words in_order(Words sum) {
  asm("" : "+x"(sum));
  return sum;
}
static inline Words add_pairs(Words w, Words x, Words sum) {
  return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(w, x)));
}
static inline F32 plus(Words sum, int32_t correction) {
  return F32(_mm256_cvtepi32_ps(_mm256_add_epi32(sum, _mm256_set1_epi32(correction))));
}
/// Stores 16-bit integers; within four of them in the order first, third, second, fourth.
static inline void store_pairs(int8_t* to, F32 x) {
  const __m256i words = _mm256_cvtps_epi32(x.v);
  const __m128i halves =
      _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i low = _mm_shufflelo_epi16(halves, _MM_SHUFFLE(3, 1, 2, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_shufflehi_epi16(low, _MM_SHUFFLE(3, 1, 2, 0)));
}

/// 4-bit codes times bytes: a pair of products has 12 bits, so a row's eight pairs fit 16 bits.
template <int kBits>
struct NibbleDots : ByteInputs<true, kBits> {
  static constexpr int kPhases = 2;
  static constexpr int kCodeBias = 0;

  template <int kPhase>
  [[gnu::always_inline]] static void load(const uint8_t* group, Words (&words)[8]) {
    for (int i = 0; i < 8; ++i) {
      const Words w = load_words(group + i * 32);
      words[i] = kPhase == 0 ? low_nibbles(w) : high_nibbles(w);
    }
  }
  template <int kPhase>
  [[gnu::always_inline]] static void add(const uint8_t* group, const Words (&words)[8],
                                         const int8_t* x, Sums& sums) {
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      const Words xi = broadcast(x + 4 * (kSteps * kPhase + i));
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        const Words pairs = _mm256_maddubs_epi16(words[kParts * i + part], xi);
        sums.part[part] = in_order(_mm256_add_epi16(sums.part[part], pairs));
      }
    }
    if (kPhase + 1 < kPhases) return;
    for (int part = 0; part < kParts; ++part) {
      sums.part[part] = add_neighbours(sums.part[part]);
      if (kBits == 9) {
        const Words high = add_neighbours(outlier_pairs(group + part * 32, x));
        sums.part[part] = _mm256_add_epi32(sums.part[part], _mm256_slli_epi32(high, 8));
      }
    }
  }
  static F32 to_float(Words sum, int32_t correction) { return plus(sum, correction); }

 private:
  static Words add_neighbours(Words pairs) {
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static Words outlier_pairs(const uint8_t* group, const int8_t* x) {
    const Words w = load_words(group + OutlierWord::get(x, OutlierWord::kOffset));
    const __m128i shift = _mm_cvtsi32_si128(8 - OutlierWord::get(x, OutlierWord::kShift));
    return _mm256_maddubs_epi16(low_nibbles(_mm256_srl_epi16(w, shift)),
                                broadcast(x + OutlierWord::kHigh));
  }
};

#else

typedef int16_t Words __attribute__((vector_size(16)));
typedef int32_t Sum __attribute__((vector_size(16)));
struct Sums {
  Sum part[kParts];
};

static inline Words load_words(const uint8_t* p) {
  Words w;
  memcpy(&w, p, sizeof(w));
  return w;
}
static inline Words low_nibbles(Words w) { return w & 0x0f0f; }
static inline Words high_nibbles(Words w) { return (w >> 4) & 0x0f0f; }
static inline Words even_bytes(Words w) { return (w << 8) >> 8; }
static inline Words odd_bytes(Words w) { return w >> 8; }
static inline Words broadcast(const int8_t* x) {
  int32_t pair;
  memcpy(&pair, x, sizeof(pair));
  return reinterpret_cast<Words>(Sum{pair, pair, pair, pair});
}
static inline Sum add_pairs(Words w, Words x, Sum sum) {
#if defined(__SSE2__)
  typedef short Native __attribute__((vector_size(16)));
  const auto products =
      __builtin_ia32_pmaddwd128(reinterpret_cast<Native>(w), reinterpret_cast<Native>(x));
  return sum + reinterpret_cast<Sum>(products);
#else
  const auto even = [](Words v) { return (reinterpret_cast<Sum>(v) << 16) >> 16; };
  const auto odd = [](Words v) { return reinterpret_cast<Sum>(v) >> 16; };
  return sum + even(w) * even(x) + odd(w) * odd(x);
#endif
}
static inline F32 plus(Sum sum, int32_t correction) {
  return F32(__builtin_convertvector(sum + correction, F32::Native));
}
/// Stores 16-bit integers; within four of them in the order first, third, second, fourth.
static inline void store_pairs(int8_t* to, F32 x) {
  const int16_t pairs[4] = {static_cast<int16_t>(x.v[0]), static_cast<int16_t>(x.v[2]),
                            static_cast<int16_t>(x.v[1]), static_cast<int16_t>(x.v[3])};
  memcpy(to, pairs, sizeof(pairs));
}

#endif

/// Products of pairs of 16-bit integers: a word of four bytes is widened to its even and its odd
/// bytes. Rows of x have 16-bit integers for every kBits.
template <bool kNibbles>
struct Int16Dots {
  static constexpr int kPhases = 16 / kSteps;
  static constexpr int kRowBytes = 64;
  static constexpr int kCodeBias = 0;

  static void store(int8_t* to, const F32 (&q)[kGroupVectors], int) {
    for (int i = 0; i < kGroupVectors; ++i) store_pairs(to + 2 * i * F32::kWidth, q[i]);
  }
  template <int kPhase>
  [[gnu::always_inline]] static void load(const uint8_t* group, Words (&words)[8]) {
    for (int i = 0; i < 4; ++i) {
      const int word = kPhase * kSteps / 2 + i / kParts;
      const uint8_t* at = group + (kNibbles ? word % 4 : word) * 64 + i % kParts * 4 * F32::kWidth;
      Words w = load_words(at);
      if (kNibbles) w = word < 4 ? low_nibbles(w) : high_nibbles(w);
      words[i + i / kParts * kParts] = even_bytes(w);
      words[i + i / kParts * kParts + kParts] = odd_bytes(w);
    }
  }
  template <int kPhase>
  [[gnu::always_inline]] static void add(const uint8_t*, const Words (&words)[8], const int8_t* x,
                                         Sums& sums) {
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      const Words xi = broadcast(x + 4 * (kSteps * kPhase + i));
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        sums.part[part] = add_pairs(words[kParts * i + part], xi, sums.part[part]);
      }
    }
  }
  template <class Sum>
  static F32 to_float(Sum sum, int32_t correction) {
    return plus(sum, correction);
  }
};

#if defined(__AVX2__)
template <bool kNibbles, int kBits>
using Dots = std::conditional_t<(kNibbles && kBits < 16), NibbleDots<kBits>, Int16Dots<kNibbles> >;
#else
template <bool kNibbles, int kBits>
using Dots = Int16Dots<kNibbles>;
#endif

#endif

}  // namespace lampo::cpu::LAMPO_ISA
