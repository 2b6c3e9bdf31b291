// SPDX-License-Identifier: Apache-2.0
// Elementary functions that give the same bits everywhere: scalar code, every SIMD width and CUDA.
// They use only correctly rounded operations in a fixed order, never a fused multiply-add: its
// presence differs between machines. Errors are measured in tests/ops/test_sampling_math.py.
//
// The functions are templates over a "lane" type: float here, a SIMD vector in cpu/vec/mask.h,
// which provides the same named operations.
#pragma once

#include "common/numeric.h"

namespace lampo {

LAMPO_HOST_DEVICE static inline float add_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
LAMPO_HOST_DEVICE static inline float sub_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fsub_rn(a, b);
#else
  return a - b;
#endif
}
LAMPO_HOST_DEVICE static inline float mul_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
LAMPO_HOST_DEVICE static inline float div_rn(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
/// max(a, floor); `floor` if a is NaN.
LAMPO_HOST_DEVICE static inline float at_least(float a, float floor) {
  return a > floor ? a : floor;
}
/// The lowest nine bits of a's representation, moved to sign and exponent.
LAMPO_HOST_DEVICE static inline float low_bits_to_exponent(float a) {
  return float_from_bits(bits_from_float(a) << 23);
}

/// 2^(y + 40) for y <= 0, relative error below 2.5e-7; 2^40 for y = 0; 0 below -166.5 and for NaN.
///
/// y = n + r with n integral and |r| <= 1/2; 2^r by a polynomial fitted to the least largest
/// relative error (9.2e-8) with value 1 at 0. Adding 1.5 * 2^23 + 167 rounds y to n and leaves
/// n + 40 + 127, a float's exponent field, in the low bits of the sum.
template <class Lane>
LAMPO_HOST_DEVICE static inline Lane exp2_times_2_40(Lane y) {
  constexpr float kRounder = 0x1.8p23f + 167.0f;
  y = at_least(y, Lane(-167.0f));
  const Lane rounded = add_rn(y, Lane(kRounder));
  const Lane r = sub_rn(y, sub_rn(rounded, Lane(kRounder)));
  Lane p = Lane(0x1.5bba14p-10f);
  p = add_rn(mul_rn(p, r), Lane(0x1.3cea88p-7f));
  p = add_rn(mul_rn(p, r), Lane(0x1.c6b752p-5f));
  p = add_rn(mul_rn(p, r), Lane(0x1.ebf9bcp-3f));
  p = add_rn(mul_rn(p, r), Lane(0x1.62e42ap-1f));
  p = add_rn(mul_rn(p, r), Lane(1.0f));
  return mul_rn(p, low_bits_to_exponent(rounded));
}

/// The nearest integer (ties to even) of 0 <= a < 2^51.
LAMPO_HOST_DEVICE static inline uint64_t round_to_u64(float a) {
#ifdef __CUDA_ARCH__
  return __float2ull_rn(a);
#else
  const double sum = static_cast<double>(a) + 0x1p52;  // its last place is worth 1
  uint64_t bits;
  memcpy(&bits, &sum, sizeof(bits));
  return bits & ((uint64_t{1} << 52) - 1);
#endif
}

/// The standard exponential variate -ln(1 - v) of v = (random + 1/2) / 2^32, relative error below
/// 6e-7 for every one of the 2^32 values. Small variates, which decide a draw, have full precision:
/// for them v is rounded, not 1 - v.
///
/// 1 - v = m 2^-n with sqrt(1/2) <= m < sqrt(2), f = m - 1, s = f / (2 + f), and
/// ln m = 2 artanh s = 2 s (1 + s^2/3 + s^4/5 + ...), |s| <= 0.1716.
LAMPO_HOST_DEVICE static inline float exponential_variate(uint32_t random) {
  // Halves of 16 bits convert exactly; each sum rounds once.
  const uint32_t rest = ~random;
  const float v_high = static_cast<float>(static_cast<int32_t>(random >> 16));
  const float v_low = static_cast<float>(static_cast<int32_t>(random & 0xffffu));
  const float u_high = static_cast<float>(static_cast<int32_t>(rest >> 16));
  const float u_low = static_cast<float>(static_cast<int32_t>(rest & 0xffffu));
  const float v = mul_rn(add_rn(mul_rn(v_high, 0x1p16f), add_rn(v_low, 0.5f)), 0x1p-32f);
  const float u = mul_rn(add_rn(mul_rn(u_high, 0x1p16f), add_rn(u_low, 0.5f)), 0x1p-32f);

  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;
  const uint32_t above = bits_from_float(u) - kSqrtHalf + (127u << 23);
  const int32_t exponent = static_cast<int32_t>(above >> 23) - 127;  // -n
  const float m = float_from_bits((above & 0x7fffffu) + kSqrtHalf);
  const float f = exponent == 0 ? -v : sub_rn(m, 1.0f);
  const float s = div_rn(f, add_rn(2.0f, f));
  const float square = mul_rn(s, s);
  float series = 0x1.c71c72p-4f;                            // 1/9
  series = add_rn(mul_rn(series, square), 0x1.24924ap-3f);  // 1/7
  series = add_rn(mul_rn(series, square), 0x1.99999ap-3f);  // 1/5
  series = add_rn(mul_rn(series, square), 0x1.555556p-2f);  // 1/3
  series = add_rn(mul_rn(series, square), 1.0f);
  const float log_m = mul_rn(add_rn(s, s), series);
  return sub_rn(mul_rn(static_cast<float>(-exponent), 0x1.62e430p-1f), log_m);
}

}  // namespace lampo
