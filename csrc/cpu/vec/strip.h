// SPDX-License-Identifier: Apache-2.0
// Integer dot products of 16 rows side by side, as packed weights lie (common/formats/formats.h): a
// strip is kParts registers wide, lane r of part p belongs to its row p kWidth + r.
//
// Dots<kNibbles, kBits>   a group of 32 inputs of a strip of 4- or 8-bit quants, times rows of x,
// of
//                         8 or 16 bits, or of 8 but for one word of 16 bits (kBits 9, their mean).
//                         In kPhases phases, each with 8 registers full of words, which serve many
//                         rows of x:
//   kRowBytes, store(to, q, wide)   how the integers of a group of x lie in memory; wide: the word
//                                   of 16 bits
//   load<kPhase>(group, words)      the words of a phase
//   add<kPhase>(group, words, x, sums)   adds their products with a group of x
//   to_float(sum, start)            sum + start
//   kCodeBias   8-bit quants are multiplied with so much added: the caller knows the sum of x
// Integer sums are exact, so every ISA gets the same ones.
#pragma once

#include <type_traits>

#include "common/formats/formats.h"
#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

inline constexpr int kParts = kStripRows / F32::kWidth;
/// Vectors of a group of x, and its words: four inputs, which are multiplied at a time.
inline constexpr int kGroupVectors = kGroupSize / F32::kWidth;
inline constexpr int kGroupWords = kGroupSize / 4;

/// An integer of 16 bits, in -127 * 256 .. 127 * 256, is 256 high + low, with both of 8 bits.
struct HighAndLow {
  F32 high, low;
  explicit HighAndLow(F32 q)
      : high(round_even((q + F32(0.25f)) * F32(1.0f / 256.0f))), low(q - F32(256.0f) * high) {}
};

/// What follows the 32 low bytes of a group of x with one word of 16 bits: its 4 high bytes, where
/// in the group of a strip the weights of that word are, and how far to shift them.
struct WideWord {
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

/// x as its low bytes, and beside them with 16 bits all highs, with 9 those of one word.
template <bool kNibbles, int kBits>
struct BytesOfX {
  static constexpr int kRowBytes = kBits == 8 ? 32 : kBits == 9 ? WideWord::kRowBytes : 64;

  static void store(int8_t* to, const F32 (&q)[kGroupVectors], int wide) {
    int8_t highs[kGroupSize];
    for (int i = 0; i < kGroupVectors; ++i) {
      const HighAndLow parts(q[i]);
      lampo::cpu::LAMPO_ISA::store(to + i * F32::kWidth, kBits == 8 ? q[i] : parts.low);
      if (kBits > 8) lampo::cpu::LAMPO_ISA::store(highs + i * F32::kWidth, parts.high);
    }
    if (kBits == 9) WideWord::put(to, highs, wide, kNibbles);
    if (kBits == 16) memcpy(to + 32, highs, sizeof(highs));
  }
};

#if defined(__AVX512F__)

using Words = __m512i;
struct Sums {
  Words part[kParts];
};

static inline Words low_nibbles(Words w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }

/// A number with its highest bit turned: what the instruction multiplies is unsigned.
static inline Words plus_128(Words w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }

template <bool kNibbles, int kBits>
struct Dots : BytesOfX<kNibbles, kBits> {
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
    if (kBits == 9) high = wide_dot(group, x);
    if (kBits == 16) high = _mm512_slli_epi32(dot(words, x + 32, high), 8);
    sums.part[0] = dot(words, x, high);
  }
  static F32 to_float(Words sum, int32_t start) {
    return F32(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(start))));
  }

 private:
  static Words dot(const Words (&words)[8], const int8_t* x, Words even) {
    // Two chains: one would leave the multipliers waiting for their own results.
    Words odd = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      even = _mm512_dpbusd_epi32(even, words[i], broadcast(x + 4 * i));
      odd = _mm512_dpbusd_epi32(odd, words[i + 1], broadcast(x + 4 * i + 4));
    }
    return _mm512_add_epi32(even, odd);
  }
  static Words wide_dot(const uint8_t* group, const int8_t* x) {
    const Words w = _mm512_loadu_si512(group + WideWord::get(x, WideWord::kOffset));
    const Words word = kNibbles ? _mm512_and_si512(w, broadcast(x + WideWord::kMask)) : plus_128(w);
    const Words high =
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), word, broadcast(x + WideWord::kHigh));
    return kNibbles ? _mm512_sllv_epi32(high, broadcast(x + WideWord::kShift))
                    : _mm512_slli_epi32(high, 8);
  }
  static Words broadcast(const int8_t* x) { return _mm512_set1_epi32(WideWord::get(x, 0)); }
};

#else

/// Registers of a phase go to every part and so many steps along the inputs.
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
/// The sum as it is: reordered by the compiler, sums need more registers than there are.
static inline Words in_order(Words sum) {
  asm("" : "+x"(sum));
  return sum;
}
static inline Words add_pairs(Words w, Words x, Words sum) {
  return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(w, x)));
}
static inline F32 plus(Words sum, int32_t start) {
  return F32(_mm256_cvtepi32_ps(_mm256_add_epi32(sum, _mm256_set1_epi32(start))));
}
/// Of each four the first, third, second and fourth.
static inline void store_pairs(int8_t* to, F32 x) {
  const __m256i words = _mm256_cvtps_epi32(x.v);
  const __m128i halves =
      _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i low = _mm_shufflelo_epi16(halves, _MM_SHUFFLE(3, 1, 2, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_shufflehi_epi16(low, _MM_SHUFFLE(3, 1, 2, 0)));
}

/// Four bits times eight: a pair of products has 12 bits, so that all eight of a row fit 16.
template <int kBits>
struct NibbleDots : BytesOfX<true, kBits> {
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
        const Words high = add_neighbours(wide_pairs(group + part * 32, x));
        sums.part[part] = _mm256_add_epi32(sums.part[part], _mm256_slli_epi32(high, 8));
      }
    }
  }
  static F32 to_float(Words sum, int32_t start) { return plus(sum, start); }

 private:
  static Words add_neighbours(Words pairs) {
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static Words wide_pairs(const uint8_t* group, const int8_t* x) {
    const Words w = load_words(group + WideWord::get(x, WideWord::kOffset));
    const __m128i shift = _mm_cvtsi32_si128(8 - WideWord::get(x, WideWord::kShift));
    return _mm256_maddubs_epi16(low_nibbles(_mm256_srl_epi16(w, shift)),
                                broadcast(x + WideWord::kHigh));
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
static inline F32 plus(Sum sum, int32_t start) {
  return F32(__builtin_convertvector(sum + start, F32::Native));
}
/// Of each four the first, third, second and fourth.
static inline void store_pairs(int8_t* to, F32 x) {
  const int16_t pairs[4] = {static_cast<int16_t>(x.v[0]), static_cast<int16_t>(x.v[2]),
                            static_cast<int16_t>(x.v[1]), static_cast<int16_t>(x.v[3])};
  memcpy(to, pairs, sizeof(pairs));
}

#endif

/// Pairs of 16-bit numbers: each word of four bytes as its even bytes and its odd ones. So wide
/// are all x; those of 9 bits too.
template <bool kNibbles>
struct WideDots {
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
  static F32 to_float(Sum sum, int32_t start) {
    return plus(sum, start);
  }
};

#if defined(__AVX2__)
template <bool kNibbles, int kBits>
using Dots = std::conditional_t<(kNibbles && kBits < 16), NibbleDots<kBits>, WideDots<kNibbles> >;
#else
template <bool kNibbles, int kBits>
using Dots = WideDots<kNibbles>;
#endif

#endif

}  // namespace lampo::cpu::LAMPO_ISA
