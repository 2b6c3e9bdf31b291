// SPDX-License-Identifier: Apache-2.0
// Exact conversion of int8 and fp8-e4m3 to 16-bit numbers, two at a time. One sequence of
// instructions serves both and every architecture; only constants differ, so kernels do not branch.
//
// A byte b is moved to the upper half of 16 bits, w. Bits of w become a number's exponent and
// mantissa, which a product and a sum correct:
//   fp8  to f16   sign and (w >> 1), times 2^8        to bf16   sign and (w >> 4), times 2^120
//   int8 to f16   1024 + (b + 128), less 1152         to bf16   128 + b % 128, less 128 or 256
// The NaN codes of fp8, 0x7f and 0xff, become +-480.
#pragma once

#include <type_traits>

#include "common/numeric.h"
#include "cuda/device/ptx/arithmetic.cuh"

namespace lampo::cuda {

/// Constants of a conversion, all pairs of 16 bits.
struct ByteFormat {
  uint32_t shift, keep, flip;  // ((w >> shift) & keep) ^ flip
  uint32_t sign;               // bits of w that keep their position
  uint32_t factor;
  uint32_t addend, addend_bits;  // addend | (b & addend_bits)
};

template <class T>
__device__ inline ByteFormat byte_format(bool is_int8) {
  if constexpr (std::is_same_v<T, BF16>) {
    return is_int8
               ? ByteFormat{8, 0x007f007fu, 0x43004300u, 0, 0x3f803f80u, 0xc300c300u, 0x00800080u}
               : ByteFormat{4, 0x07f007f0u, 0, 0x80008000u, 0x7b807b80u, 0, 0};
  } else {
    static_assert(std::is_same_v<T, F16>);
    return is_int8 ? ByteFormat{8, 0x00ff00ffu, 0x64806480u, 0, 0x3c003c00u, 0xe480e480u, 0}
                   : ByteFormat{1, 0x3f803f80u, 0, 0x80008000u, 0x5c005c00u, 0, 0};
  }
}

/// Bytes kFirst and kSecond of `bytes` as a pair of T.
template <class T, int kFirst, int kSecond>
__device__ inline uint32_t pair_of_bytes(uint32_t bytes, const ByteFormat& f) {
  const uint32_t w = select_bytes(bytes, 0x0404u | kFirst << 4 | kSecond << 12);
  const uint32_t number = (((w >> f.shift) & f.keep) ^ f.flip) | (w & f.sign);
  return multiply_add_pairs<T>(number, f.factor, f.addend | ((w >> 8) & f.addend_bits));
}

}  // namespace lampo::cuda
