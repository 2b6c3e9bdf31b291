// SPDX-License-Identifier: Apache-2.0
// Integer dot products of 16 rows side by side, as packed weights lie (common/weight_format.h): a
// strip is kParts registers wide, lane r of part p belongs to its row p kWidth + r.
//
// Dots<kNibbles, kBits>   a group of 32 inputs of a strip of 4- or 8-bit quants, times rows of x of
//                         kBits each. In kPhases phases, each with 8 registers full of words, which
//                         serve many rows of x:
//   kRowBytes, store(to, i, high, low)   how a group of x lies in memory; elements [i, i + kWidth)
//                                        are high, or 256 high + low
//   load<kPhase>(group, words)           the words of a phase
//   add<kPhase>(words, x, sums)          adds their products with a group of x
//   to_float(sum, start)                 sum + start
//   kSignedBias   8-bit quants are multiplied with so much added: the caller knows the sum of x
//   HighOnly      the same of a group of x whose lows are all 0, for less work; void: there is none
// Integer sums are exact, so every ISA gets the same ones.
#pragma once

#include <type_traits>

#include "common/weight_format.h"
#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

inline constexpr int kParts = kStripRows / F32::kWidth;

#if defined(__AVX512F__)

using Words = __m512i;
struct Sums {
  Words part[kParts];
};

static inline Words low_nibbles(Words w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }

/// 16 bits as two planes of 8: twice the products, or only those of the first.
template <bool kNibbles, int kBits, bool kLow = kBits == 16>
struct Dots {
  using HighOnly = std::conditional_t<kLow, Dots<kNibbles, kBits, false>, void>;
  static constexpr int kPhases = 1;
  static constexpr int kRowBytes = 32 * (kBits / 8);
  static constexpr int kSignedBias = 128;  // the instruction wants unsigned quants

  static void store(int8_t* to, int i, F32 high, F32 low) {
    lampo::cpu::LAMPO_ISA::store(to + i, high);
    if (kBits == 16) lampo::cpu::LAMPO_ISA::store(to + 32 + i, low);
  }
  template <int kPhase>
  [[gnu::always_inline]] static void load(const uint8_t* group, Words (&words)[8]) {
    for (int i = 0; i < (kNibbles ? 4 : 8); ++i) {
      const Words w = _mm512_loadu_si512(group + i * 64);
      if (kNibbles) {
        words[i] = low_nibbles(w);
        words[i + 4] = low_nibbles(_mm512_srli_epi16(w, 4));
      } else {
        words[i] = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
      }
    }
  }
  template <int kPhase>
  [[gnu::always_inline]] static void add(const Words (&words)[8], const int8_t* x, Sums& sums) {
    sums.part[0] = dot(words, x, sums.part[0]);
    if (kBits == 16) sums.part[0] = _mm512_slli_epi32(sums.part[0], 8);
    if (kLow) sums.part[0] = dot(words, x + 32, sums.part[0]);
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
  static Words broadcast(const int8_t* x) { return _mm512_broadcastd_epi32(_mm_loadu_si32(x)); }
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
struct NibbleDots {
  using HighOnly = void;
  static constexpr int kPhases = 2;
  static constexpr int kRowBytes = 32;
  static constexpr int kSignedBias = 0;

  static void store(int8_t* to, int i, F32 high, F32) {
    lampo::cpu::LAMPO_ISA::store(to + i, high);
  }
  template <int kPhase>
  [[gnu::always_inline]] static void load(const uint8_t* group, Words (&words)[8]) {
    for (int i = 0; i < 8; ++i) {
      const Words w = load_words(group + i * 32);
      words[i] = kPhase == 0 ? low_nibbles(w) : high_nibbles(w);
    }
  }
  template <int kPhase>
  [[gnu::always_inline]] static void add(const Words (&words)[8], const int8_t* x, Sums& sums) {
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      const Words xi = broadcast(x + 4 * (kSteps * kPhase + i));
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        const Words pairs = _mm256_maddubs_epi16(words[kParts * i + part], xi);
        sums.part[part] = in_order(_mm256_add_epi16(sums.part[part], pairs));
      }
    }
  }
  static F32 to_float(Words sum, int32_t start) {
    return plus(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), start);
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

/// Pairs of 16-bit numbers: each word of four bytes as its even bytes and its odd ones.
template <bool kNibbles, int kBits>
struct WideDots {
  using HighOnly = void;
  static constexpr int kPhases = 16 / kSteps;
  static constexpr int kRowBytes = 64;
  static constexpr int kSignedBias = 0;

  static void store(int8_t* to, int i, F32 high, F32 low) {
    store_pairs(to + 2 * i, kBits == 16 ? high * F32(256.0f) + low : high);
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
  [[gnu::always_inline]] static void add(const Words (&words)[8], const int8_t* x, Sums& sums) {
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
/// Four bits times 16. A group of x holds its highs once more, for the products of four bits times
/// eight.
struct SplitNibbleDots : WideDots<true, 16> {
  using Wide = WideDots<true, 16>;
  static constexpr int kRowBytes = Wide::kRowBytes + NibbleDots::kRowBytes;

  struct HighOnly : NibbleDots {
    static constexpr int kRowBytes = SplitNibbleDots::kRowBytes;

    template <int kPhase>
    [[gnu::always_inline]] static void add(const Words (&words)[8], const int8_t* x, Sums& sums) {
      NibbleDots::add<kPhase>(words, x + Wide::kRowBytes, sums);
    }
    static F32 to_float(Words sum, int32_t start) {
      return plus(_mm256_slli_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), 8), start);
    }
  };

  static void store(int8_t* to, int i, F32 high, F32 low) {
    Wide::store(to, i, high, low);
    NibbleDots::store(to + Wide::kRowBytes, i, high, low);
  }
};

template <bool kNibbles, int kBits>
using Dots = std::conditional_t<!kNibbles, WideDots<kNibbles, kBits>,
                                std::conditional_t<kBits == 8, NibbleDots, SplitNibbleDots> >;
#else
template <bool kNibbles, int kBits>
using Dots = WideDots<kNibbles, kBits>;
#endif

#endif

}  // namespace lampo::cpu::LAMPO_ISA
