// SPDX-License-Identifier: Apache-2.0
// Transposition of kWidth rows in memory to vectors across the rows. A row of any storage type is a
// sequence of units of 32 bits (one float, two halves, four bytes). A square of kWidth rows by
// kWidth units is transposed with 32-bit shuffles, then its units are widened:
//
//   Units units[F32::kWidth];
//   load_transposed(rows, offset, units);   units[u] holds unit u of row 0, row 1, ...
//   widen<T, kPart>(units[u])               element u * (4 / size of T) + kPart of all rows
//   widen_pairs<T, kPart>(units[u])         two of them as BF16: pair u * (2 / size of T) + kPart
#pragma once

#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

#if defined(__AVX512F__)

struct Units {
  __m512i v;
};

/// 16 bytes at `offset` of rows 0, 4, 8 and 12, a quarter of the register each.
static inline __m512i load_quarters(const char* const* rows, int64_t offset) {
  const auto quarter = [&](int row) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset));
  };
  __m512i v = _mm512_castsi128_si512(quarter(0));
  v = _mm512_mask_broadcast_i32x4(v, 0x00f0, quarter(4));
  v = _mm512_mask_broadcast_i32x4(v, 0x0f00, quarter(8));
  return _mm512_mask_broadcast_i32x4(v, 0xf000, quarter(12));
}

static inline void load_transposed(const char* const* rows, int64_t offset, Units* units) {
#pragma GCC unroll 4
  for (int group = 0; group < 4; ++group) {
    const __m512i a = load_quarters(rows, offset + 16 * group);
    const __m512i b = load_quarters(rows + 1, offset + 16 * group);
    const __m512i c = load_quarters(rows + 2, offset + 16 * group);
    const __m512i d = load_quarters(rows + 3, offset + 16 * group);
    const __m512i ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
    const __m512i cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
    units[4 * group].v = _mm512_unpacklo_epi64(ab_low, cd_low);
    units[4 * group + 1].v = _mm512_unpackhi_epi64(ab_low, cd_low);
    units[4 * group + 2].v = _mm512_unpacklo_epi64(ab_high, cd_high);
    units[4 * group + 3].v = _mm512_unpackhi_epi64(ab_high, cd_high);
  }
}

/// Two BF16 in each lane, from floats that a BF16 holds exactly.
static inline F32 pack_pairs(F32 low, F32 high) {
  const __m512i top = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return F32(
      _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(low.v), 16),
                                          _mm512_and_si512(_mm512_castps_si512(high.v), top))));
}

template <class T, int kPart>
static inline F32 widen(Units units) {
  if constexpr (std::is_same_v<T, float>) {
    return F32(_mm512_castsi512_ps(units.v));
  } else if constexpr (std::is_same_v<T, BF16>) {
    return F32(_mm512_castsi512_ps(
        kPart == 0 ? _mm512_slli_epi32(units.v, 16)
                   : _mm512_and_si512(units.v, _mm512_set1_epi32(static_cast<int>(0xffff0000)))));
  } else if constexpr (std::is_same_v<T, F16>) {
    return F32(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(units.v, 16 * kPart))));
  } else if constexpr (std::is_same_v<T, int8_t>) {
    const __m512i top = _mm512_slli_epi32(units.v, 24 - 8 * kPart);
    return F32(_mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24)));
  } else {
    static_assert(std::is_same_v<T, F8E4M3>);
    return widen_f8(_mm512_srli_epi32(units.v, 8 * kPart));
  }
}

/// Exact, since T is BF16 or has 8 bits.
template <class T, int kPart>
static inline F32 widen_pairs(Units units) {
  if constexpr (std::is_same_v<T, BF16>) {
    return F32(_mm512_castsi512_ps(units.v));
  } else {
    return pack_pairs(widen<T, 2 * kPart>(units), widen<T, 2 * kPart + 1>(units));
  }
}

#elif defined(__AVX2__)

struct Units {
  __m256i v;
};

/// The 16 bytes at `offset` of rows 0 and 4, one in each half.
static inline __m256i load_halves(const char* const* rows, int64_t offset) {
  return _mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[0] + offset))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[4] + offset)), 1);
}

static inline void load_transposed(const char* const* rows, int64_t offset, Units* units) {
#pragma GCC unroll 2
  for (int group = 0; group < 2; ++group) {
    const __m256i a = load_halves(rows, offset + 16 * group);
    const __m256i b = load_halves(rows + 1, offset + 16 * group);
    const __m256i c = load_halves(rows + 2, offset + 16 * group);
    const __m256i d = load_halves(rows + 3, offset + 16 * group);
    const __m256i ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
    const __m256i cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
    units[4 * group].v = _mm256_unpacklo_epi64(ab_low, cd_low);
    units[4 * group + 1].v = _mm256_unpackhi_epi64(ab_low, cd_low);
    units[4 * group + 2].v = _mm256_unpacklo_epi64(ab_high, cd_high);
    units[4 * group + 3].v = _mm256_unpackhi_epi64(ab_high, cd_high);
  }
}

template <class T, int kPart>
static inline F32 widen(Units units) {
  if constexpr (std::is_same_v<T, float>) {
    return F32(_mm256_castsi256_ps(units.v));
  } else if constexpr (std::is_same_v<T, BF16>) {
    return F32(_mm256_castsi256_ps(
        kPart == 0 ? _mm256_slli_epi32(units.v, 16)
                   : _mm256_and_si256(units.v, _mm256_set1_epi32(static_cast<int>(0xffff0000)))));
  } else if constexpr (std::is_same_v<T, F16>) {
    const __m256i halves = kPart == 0 ? _mm256_and_si256(units.v, _mm256_set1_epi32(0xffff))
                                      : _mm256_srli_epi32(units.v, 16);
    return F32(_mm256_cvtph_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1))));
  } else if constexpr (std::is_same_v<T, int8_t>) {
    const __m256i top = _mm256_slli_epi32(units.v, 24 - 8 * kPart);
    return F32(_mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24)));
  } else {
    static_assert(std::is_same_v<T, F8E4M3>);
    return widen_f8(_mm256_srli_epi32(units.v, 8 * kPart));
  }
}

#else

struct Units {
  uint32_t lanes[F32::kWidth];
};

static inline void load_transposed(const char* const* rows, int64_t offset, Units* units) {
  for (int row = 0; row < F32::kWidth; ++row) {
    uint32_t words[F32::kWidth];
    memcpy(words, rows[row] + offset, sizeof(words));
    for (int u = 0; u < F32::kWidth; ++u) units[u].lanes[row] = words[u];
  }
}

template <class T, int kPart>
static inline F32 widen(Units units) {
  F32 result;
  if constexpr (std::is_same_v<T, float>) {
    memcpy(&result.v, units.lanes, sizeof(units.lanes));
  } else if constexpr (std::is_same_v<T, BF16>) {
    for (uint32_t& word : units.lanes) word = kPart == 0 ? word << 16 : word & 0xffff0000u;
    memcpy(&result.v, units.lanes, sizeof(units.lanes));
  } else {
    for (int i = 0; i < F32::kWidth; ++i) {
      const uint32_t code = units.lanes[i] >> (8 * static_cast<int>(sizeof(T)) * kPart);
      if constexpr (std::is_same_v<T, int8_t>) {
        result.v[i] = static_cast<float>(static_cast<int8_t>(code & 0xffu));
      } else if constexpr (std::is_same_v<T, F16>) {
        result.v[i] = to_float(F16{static_cast<uint16_t>(code)});
      } else {
        static_assert(std::is_same_v<T, F8E4M3>);
        result.v[i] = to_float(F8E4M3{static_cast<uint8_t>(code)});
      }
    }
  }
  return result;
}

#endif

}  // namespace lampo::cpu::LAMPO_ISA
