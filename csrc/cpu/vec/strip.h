// SPDX-License-Identifier: Apache-2.0
// Integer dot products of a packed strip (common/formats/formats.h) with rows of x. A strip is
// kParts registers wide; lane r of part p belongs to its row p kWidth + r.
//
// Dots<Format, kBits> multiplies a group of 32 inputs; x has integers of kBits bits: 8, 16, or for
// kBits 9 (their mean) 8 with one outlier word of four 16-bit integers. It works in kPhases phases;
// a phase unpacks 8 registers of words, which serve many rows of x. A group has one sum for each of
// its scales: of 32 or of 16 inputs.
//   Inputs                              storage of a group of x, which many formats share:
//     kRowBytes                           its bytes
//     store(to, q, outlier)               stores it; outlier: its outlier word
//   load<kPhase>(group, words)          unpacks the words of a phase
//   add<kPhase>(codes, words, x, sums)  adds their products with a group of x; codes: Packed or
//                                       UnpackedWords, to find the outlier word
//   kHasOutlier                         whether x has an outlier word
//   to_float(sum, correction)           sum + correction
//   kCodeBias                           amount added to codes' values before they are multiplied
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

/// Outlier word of a group of x, stored behind the group's 32 low bytes: its 4 high bytes, its
/// number among the group's words, and for strips of nibbles the offset of that word's codes, the
/// mask that selects them where they are, and the shift of a product with them.
struct OutlierWord {
  static constexpr int kHigh = 32, kNumber = 36, kOffset = 40, kMask = 44, kShift = 48;
  static constexpr int kRowBytes = 52;

  static int32_t get(const int8_t* x, int at) {
    int32_t value;
    memcpy(&value, x + at, sizeof(value));
    return value;
  }
  static void put(int8_t* x, const int8_t* highs, int32_t word) {
    const int32_t offset = word % 4 * kStripRows * 4, shift = word < 4 ? 8 : 4;
    const int32_t mask = static_cast<int32_t>(word < 4 ? 0x0f0f0f0f : 0xf0f0f0f0);
    memcpy(x + kHigh, highs + 4 * word, 4);
    memcpy(x + kNumber, &word, 4);
    memcpy(x + kOffset, &offset, 4);
    memcpy(x + kMask, &mask, 4);
    memcpy(x + kShift, &shift, 4);
  }
};

/// Storage of a group of x as bytes: the low ones, then the high ones (kBits 16) or those of the
/// outlier word (kBits 9).
template <int kBits>
struct ByteInputs {
  static constexpr bool kHasOutlier = kBits == 9;
  static constexpr int kRowBytes = kBits == 8 ? 32 : kBits == 9 ? OutlierWord::kRowBytes : 64;

  static void store(int8_t* to, const F32 (&q)[kGroupVectors], int outlier) {
    int8_t highs[kGroupSize];
    for (int i = 0; i < kGroupVectors; ++i) {
      const HighAndLow parts(q[i]);
      lampo::cpu::LAMPO_ISA::store(to + i * F32::kWidth, kBits == 8 ? q[i] : parts.low);
      if (kBits > 8) lampo::cpu::LAMPO_ISA::store(highs + i * F32::kWidth, parts.high);
    }
    if (kBits == 9) OutlierWord::put(to, highs, outlier);
    if (kBits == 16) memcpy(to + 32, highs, sizeof(highs));
  }
};

#if defined(__AVX512F__)
using Words = __m512i;
#elif defined(__AVX2__)
using Words = __m256i;
#else
typedef int16_t Words __attribute__((vector_size(16)));
#endif

static inline Words load_words(const uint8_t* p) {
  Words w;
  memcpy(&w, p, sizeof(w));
  return w;
}
static inline Words and_bytes(Words w, int mask) {
  typedef uint8_t Bytes __attribute__((vector_size(sizeof(Words))));
  return reinterpret_cast<Words>(reinterpret_cast<Bytes>(w) & static_cast<uint8_t>(mask));
}
/// Bits of 32-bit lanes moved down, or up if `count` is negative. Where the bits of each byte that
/// are kept come from the same byte, the lanes' width does not matter.
[[gnu::always_inline]] static inline Words shift_down(Words w, int count) {
  typedef uint32_t Lanes __attribute__((vector_size(sizeof(Words))));
  const auto up = static_cast<uint32_t>(count < 0 ? -count : 0);
  const auto down = static_cast<uint32_t>(count > 0 ? count : 0);
  return reinterpret_cast<Words>(reinterpret_cast<Lanes>(w) << up >> down);
}
/// table[code] ^ flip for every byte; the codes are below 16.
static inline Words look_up(const int8_t (&table)[16], Words codes, int flip) {
#if defined(__AVX2__)
  const __m128i values = _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)),
                                       _mm_set1_epi8(static_cast<char>(flip)));
#endif
#if defined(__AVX512F__)
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), codes);
#elif defined(__AVX2__)
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), codes);
#else
  uint8_t bytes[sizeof(Words)];
  memcpy(bytes, &codes, sizeof(bytes));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(table[byte] ^ flip);
  return load_words(bytes);
#endif
}

/// Word k of a group of a strip, for the rows of a part: four codes of each row as bytes, or with a
/// table, their values. `flip` changes the bits of signed ones.
template <class Format>
[[gnu::always_inline]] static inline Words code_word(const uint8_t* group, int k, int part = 0,
                                                     int flip = 0) {
  using Group = StripGroup<Format>;
  const auto plane = [&](int offset, int word) {
    return load_words(group + offset + word * Group::kWordBytes + part * 4 * F32::kWidth);
  };
  if constexpr (Group::kHasBytes) {
    typedef uint8_t Bytes __attribute__((vector_size(sizeof(Words))));
    return reinterpret_cast<Words>(reinterpret_cast<Bytes>(plane(0, k)) ^
                                   static_cast<uint8_t>(flip));
  } else {
    Words codes{};
    if constexpr (Group::kHasNibbles) {
      codes = and_bytes(shift_down(plane(0, k % 4), k / 4 * 4), 15);
    }
    if constexpr (Group::kHasPairs) {
      const Words pairs =
          shift_down(plane(Group::kPairOffset, k / 4), k % 4 * 2 - Group::kPairShift);
      codes |= and_bytes(pairs, 3 << Group::kPairShift);
    }
    if constexpr (Group::kHasSingles) {
      const Words singles = shift_down(plane(Group::kSingleOffset, 0), k - Group::kSingleShift);
      codes |= and_bytes(singles, 1 << Group::kSingleShift);
    }
    if constexpr (HasTable<Format>) codes = look_up(Format::kTable, codes, flip);
    return codes;
  }
}

/// The words of a group as they are stored.
struct PackedWords {
  const uint8_t* group;
  void keep(int, const Words (&)[8]) {}
};
/// All words of a group unpacked: for many rows of x, cheaper than to unpack their outlier words.
struct UnpackedWords {
  alignas(64) uint8_t bytes[kGroupWords * kStripRows * 4];

  explicit UnpackedWords(const uint8_t*) {}
  /// Keeps the words of a phase.
  void keep(int phase, const Words (&words)[8]) {
    memcpy(bytes + phase * static_cast<int64_t>(sizeof(words)), words, sizeof(words));
  }
  Words word(int64_t number, int part) const {
    return load_words(bytes + (number * kParts + part) * static_cast<int64_t>(sizeof(Words)));
  }
};

/// Whether the words of a format are of signed bytes.
template <class Format>
inline constexpr bool kHasSignedWords = StripGroup<Format>::kHasBytes || HasTable<Format>;

/// Whether they are its nibbles, as they are.
template <class Format>
inline constexpr bool kHasPlainNibbles = Format::kCodeBits == 4 && !HasTable<Format>;

#if defined(__AVX512F__)

template <int kScales>
struct Sums {
  Words part[kScales][kParts];
};

static inline Words broadcast(const int8_t* x) { return _mm512_set1_epi32(OutlierWord::get(x, 0)); }
/// sum + the products of words with four bytes of x. In assembly, as GCC 12 loads and broadcasts
/// them by another instruction.
static inline Words add_products(Words sum, Words words, const int8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sum)
      : "v"(words), "m"(*reinterpret_cast<const int32_t*>(x)));
  return sum;
}

template <class Format, int kBits>
struct Dots : ByteInputs<kBits> {
  using Inputs = ByteInputs<kBits>;
  static constexpr int kScales = StripGroup<Format>::kScales;
  static constexpr int kPhases = 1;
  // The first factor of the instruction is unsigned.
  static constexpr int kCodeBias = kHasSignedWords<Format> ? 128 : 0;

  template <int kPhase>
  [[gnu::always_inline]] static void load(const uint8_t* group, Words (&words)[8]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) words[i] = code_word<Format>(group, i, 0, kCodeBias);
  }
  template <int kPhase, class Codes>
  [[gnu::always_inline]] static void add(const Codes& codes, const Words (&words)[8],
                                         const int8_t* x, Sums<kScales>& sums) {
    const Words zero = _mm512_setzero_si512();
    Words begin[2] = {zero, zero};  // of the two chains, which hide the latency of multipliers
    if (kBits == 16) {
      dot(words, x + 32, begin);
      for (Words& high : begin) high = _mm512_slli_epi32(high, 8);
    }
    if (kBits == 9) {
      const Words high = outlier_dot(codes, x);
      if constexpr (kScales == 1) {
        begin[0] = high;
      } else {
        const bool first = OutlierWord::get(x, OutlierWord::kNumber) < 4;
        const auto in_second = static_cast<__mmask16>(first ? 0 : -1);
        begin[0] = _mm512_mask_mov_epi32(high, in_second, zero);
        begin[1] = _mm512_maskz_mov_epi32(in_second, high);
      }
    }
    dot(words, x, begin);
    if constexpr (kScales == 1) {
      sums.part[0][0] = _mm512_add_epi32(begin[0], begin[1]);
    } else {
      for (int i = 0; i < 2; ++i) sums.part[i][0] = begin[i];
    }
  }
  static F32 to_float(Words sum, int32_t correction) {
    return F32(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_set1_epi32(correction))));
  }

 private:
  template <class Codes>
  [[gnu::always_inline]] static Words outlier_dot(const Codes& codes, const int8_t* x) {
    const Words zero = _mm512_setzero_si512();
    const int8_t* highs = x + OutlierWord::kHigh;
    const int32_t number = OutlierWord::get(x, OutlierWord::kNumber);
    if constexpr (std::is_same_v<Codes, UnpackedWords>) {
      return _mm512_slli_epi32(add_products(zero, codes.word(number, 0), highs), 8);
    } else if constexpr (kHasPlainNibbles<Format>) {
      const Words both = load_words(codes.group + OutlierWord::get(x, OutlierWord::kOffset));
      const Words word = _mm512_and_si512(both, broadcast(x + OutlierWord::kMask));
      return _mm512_sllv_epi32(add_products(zero, word, highs), broadcast(x + OutlierWord::kShift));
    } else {
      const Words word = code_word<Format>(codes.group, number, 0, kCodeBias);
      return _mm512_slli_epi32(add_products(zero, word, highs), 8);
    }
  }
  /// Two chains: of alternating words, or of the two halves where they have scales of their own.
  [[gnu::always_inline]] static void dot(const Words (&words)[8], const int8_t* x,
                                         Words (&sums)[2]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      Words& sum = sums[kScales == 1 ? i % 2 : i / 4];
      sum = add_products(sum, words[i], x + 4 * i);
    }
  }
};

#else

/// Words along the inputs that a phase unpacks for every part.
inline constexpr int kSteps = 8 / kParts;

#if defined(__AVX2__)

template <int kScales>
struct Sums {
  Words part[kScales][kParts];
};

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

/// Codes of up to 6 bits times bytes. Pairs of products are added in 16 bits for as many words as
/// fit: 8 with codes of up to 4 bits, 4 with 5 bits, 2 with 6.
template <class Format, int kBits>
struct ByteDots : ByteInputs<kBits> {
  using Inputs = ByteInputs<kBits>;
  static constexpr int kScales = StripGroup<Format>::kScales;
  static constexpr int kPhases = 2;
  static constexpr int kCodeBias = 0;
  static constexpr int kWordsInPairs =
      Format::kCodeBits < 5 ? 8 / kScales : 16 >> (Format::kCodeBits - 3);

  template <int kPhase>
  [[gnu::always_inline]] static void load(const uint8_t* group, Words (&words)[8]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      words[i] = code_word<Format>(group, kSteps * kPhase + i / kParts, i % kParts);
    }
  }
  template <int kPhase, class Codes>
  [[gnu::always_inline]] static void add(const Codes& codes, const Words (&words)[8],
                                         const int8_t* x, Sums<kScales>& sums) {
    constexpr bool kLast = kPhase + 1 == kPhases;
    Words(&sum)[kParts] = sums.part[kScales == 1 ? 0 : kPhase];
    Words pairs[kParts] = {};
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      const Words xi = broadcast(x + 4 * (kSteps * kPhase + i));
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        // With 8 words in pairs, they stay in the sums from one phase to the next.
        Words& to = kWordsInPairs == 8 ? sum[part] : pairs[part];
        to = in_order(_mm256_add_epi16(to, _mm256_maddubs_epi16(words[kParts * i + part], xi)));
        if (kWordsInPairs < 8 && (i + 1) % kWordsInPairs == 0) {
          sum[part] = in_order(_mm256_add_epi32(sum[part], add_neighbours(pairs[part])));
          pairs[part] = Words{};
        }
      }
    }
    if constexpr (kLast) {
      for (int part = 0; part < kParts; ++part) {
        if (kWordsInPairs == 8) sum[part] = add_neighbours(sum[part]);
        if (kBits == 9) add_outlier(codes, part, x, sums);
      }
    }
  }
  static F32 to_float(Words sum, int32_t correction) { return plus(sum, correction); }

 private:
  static Words add_neighbours(Words pairs) {
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  template <class Codes>
  [[gnu::always_inline]] static void add_outlier(const Codes& codes, int part, const int8_t* x,
                                                 Sums<kScales>& sums) {
    const int32_t number = OutlierWord::get(x, OutlierWord::kNumber);
    Words word;
    if constexpr (std::is_same_v<Codes, UnpackedWords>) {
      word = codes.word(number, part);
    } else if constexpr (kHasPlainNibbles<Format>) {
      const uint8_t* at = codes.group + OutlierWord::get(x, OutlierWord::kOffset) + part * 32;
      const __m128i shift = _mm_cvtsi32_si128(8 - OutlierWord::get(x, OutlierWord::kShift));
      word = and_bytes(_mm256_srl_epi16(load_words(at), shift), 15);
    } else {
      word = code_word<Format>(codes.group, number, part);
    }
    const Words high = _mm256_slli_epi32(
        add_neighbours(_mm256_maddubs_epi16(word, broadcast(x + OutlierWord::kHigh))), 8);
    for (int i = 0; i < kScales; ++i) {
      const Words mine = _mm256_set1_epi32(kScales == 1 || number / 4 == i ? -1 : 0);
      sums.part[i][part] = _mm256_add_epi32(sums.part[i][part], _mm256_and_si256(high, mine));
    }
  }
};

#else

typedef int32_t Sum __attribute__((vector_size(16)));
template <int kScales>
struct Sums {
  Sum part[kScales][kParts];
};

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

/// Storage of a group of x as 16-bit integers.
struct PairInputs {
  static constexpr bool kHasOutlier = false;
  static constexpr int kRowBytes = 64;

  static void store(int8_t* to, const F32 (&q)[kGroupVectors], int) {
    for (int i = 0; i < kGroupVectors; ++i) store_pairs(to + 2 * i * F32::kWidth, q[i]);
  }
};

/// Products of pairs of 16-bit integers: a word of four bytes is widened to its even and its odd
/// bytes. Rows of x have 16-bit integers for every kBits.
template <class Format>
struct Int16Dots : PairInputs {
  using Inputs = PairInputs;
  static constexpr int kScales = StripGroup<Format>::kScales;
  static constexpr int kPhases = 16 / kSteps;
  static constexpr int kCodeBias = 0;

  template <int kPhase>
  [[gnu::always_inline]] static void load(const uint8_t* group, Words (&words)[8]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Words w = code_word<Format>(group, kPhase * kSteps / 2 + i / kParts, i % kParts);
      words[i + i / kParts * kParts] = even_bytes(w);
      words[i + i / kParts * kParts + kParts] = odd_bytes(w);
    }
  }
  template <int kPhase, class Codes>
  [[gnu::always_inline]] static void add(const Codes&, const Words (&words)[8], const int8_t* x,
                                         Sums<kScales>& sums) {
    constexpr int kSet = kScales == 1 ? 0 : 2 * kPhase / kPhases;
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
      const Words xi = broadcast(x + 4 * (kSteps * kPhase + i));
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        sums.part[kSet][part] = add_pairs(words[kParts * i + part], xi, sums.part[kSet][part]);
      }
    }
  }
  template <class Sum>
  static F32 to_float(Sum sum, int32_t correction) {
    return plus(sum, correction);
  }
};

#if defined(__AVX2__)
template <class Format, int kBits>
using Dots = std::conditional_t<(!kHasSignedWords<Format> && kBits < 16), ByteDots<Format, kBits>,
                                Int16Dots<Format> >;
#else
template <class Format, int kBits>
using Dots = Int16Dots<Format>;
#endif

#endif

}  // namespace lampo::cpu::LAMPO_ISA
