// SPDX-License-Identifier: Apache-2.0
// Exact conversion of int8 and fp8-e4m3 to bfloat16, two at a time.
//
// Bits of a byte b become those of a number, which a product and a sum correct:
//   int8  128 + b % 128, less 128 or 256 by its sign
//   fp8   its sign, exponent and mantissa, moved down by 4 bits of 16, times 2^120
// The NaN codes of fp8, 0x7f and 0xff, become +-480.
#pragma once

#include <type_traits>

#include "common/numeric.h"
#include "cuda/device/ptx/arithmetic.cuh"

namespace lampo::cuda {

/// Bytes kFirst and kSecond of a word at bit kBit of its two halves; the other bits are undefined.
template <int kFirst, int kSecond, int kBit>
__device__ inline uint32_t spread_bytes(uint32_t bytes) {
  static_assert(kBit == 0 || kBit == 8);
  if constexpr (kSecond != kFirst + 2) {
    return select_bytes(bytes, (0x0404u | kFirst << 4 | kSecond << 12) >> (kBit == 0 ? 4 : 0));
  } else if constexpr (kBit < 8 * kFirst) {
    return bytes >> (8 * kFirst - kBit);
  } else {
    return bytes << (kBit - 8 * kFirst);
  }
}

/// Bytes kFirst and kSecond of a word, int8_t or F8E4M3, as a pair of BF16.
template <class Byte, int kFirst, int kSecond>
__device__ inline uint32_t pair_of_bytes(uint32_t bytes) {
  if constexpr (std::is_same_v<Byte, int8_t>) {
    const uint32_t w = spread_bytes<kFirst, kSecond, 0>(bytes);
    return multiply_add_pairs<BF16>(and_or(w, 0x007f007fu, 0x43004300u), 0x3f803f80u,
                                    and_or(w, 0x00800080u, 0xc300c300u));
  } else {
    static_assert(std::is_same_v<Byte, F8E4M3>);
    const uint32_t w = spread_bytes<kFirst, kSecond, 8>(bytes);
    return multiply_add_pairs<BF16>(((w >> 4) & 0x07f007f0u) | (w & 0x80008000u), 0x7b807b80u, 0);
  }
}

}  // namespace lampo::cuda
