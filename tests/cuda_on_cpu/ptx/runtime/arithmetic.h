// SPDX-License-Identifier: Apache-2.0
// Instructions that compute, for translated kernels. Exact ones are as IEEE 754 and the PTX manual
// say, but for NaN, which keeps the host's bits here. The approximate ones are those of the twins
// (tests/cuda_on_cpu/twin/cuda/device/ptx/arithmetic.cuh).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

/// The same bits as another type.
template <class To, class From>
inline To as(From value) {
  return std::bit_cast<To>(value);
}

// In arithmetic.cpp; `line` is that of the instruction.
[[noreturn]] void divides_by_zero(int line);

float multiply_add_down(float a, float b, float c);  // rounded toward minus infinity
float reciprocal_approximate(float x);               // hardware: within 1 ulp
double reciprocal_approximate(double x);  // hardware: the upper 32 bits, within 1 of them
float exp2_approximate(float x);          // hardware: within 2 ulp
u32 multiply_add_bf16x2(u32 a, u32 b, u32 c);
u32 multiply_add_f16x2(u32 a, u32 b, u32 c);
u32 pack_bf16x2(float high, float low);
u32 pack_f16x2(float high, float low);
float widen_f16(u16 bits);
u32 permute_bytes(u32 low, u32 high, u32 selector);
/// A bit of the result is bit 4 a + 2 b + c of the table, of the operands' bits at its place.
u32 look_up_bits(u32 a, u32 b, u32 c, u32 table);

inline float multiply_add(float a, float b, float c) { return std::fmaf(a, b, c); }
inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }
inline float square_root(float x) { return std::sqrt(x); }
inline double square_root(double x) { return std::sqrt(x); }
inline float copy_sign(float magnitude, float sign) { return std::copysign(magnitude, sign); }
inline double copy_sign(double magnitude, double sign) { return std::copysign(magnitude, sign); }
inline float nearest(float x) { return std::nearbyint(x); }
inline double nearest(double x) { return std::nearbyint(x); }
inline float toward_zero(float x) { return std::trunc(x); }
inline double toward_zero(double x) { return std::trunc(x); }

/// Neither operand is NaN.
template <class T>
inline bool ordered(T a, T b) {
  return a == a && b == b;
}

/// For floats: -0 is smaller than +0, and NaN gives the other operand.
template <class T>
inline T minimum(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return b;
    if (a == b) return std::signbit(a) ? a : b;
  }
  return b < a ? b : a;
}
template <class T>
inline T maximum(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (a != a) return b;
    if (a == b) return std::signbit(a) ? b : a;
  }
  return a < b ? b : a;
}

template <class T>
inline T negative(T x) {
  if constexpr (std::is_floating_point_v<T>) {
    return -x;
  } else {
    return static_cast<T>(-static_cast<u64>(x));
  }
}
template <class T>
inline T absolute(T x) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::fabs(x);
  } else {
    return x < 0 ? negative(x) : x;
  }
}

template <class T>
inline T quotient(T a, T b, int line) {
  if (b == 0) divides_by_zero(line);
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return negative(a);
  }
  return static_cast<T>(a / b);
}
template <class T>
inline T remainder(T a, T b, int line) {
  if (b == 0) divides_by_zero(line);
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return 0;
  }
  return static_cast<T>(a % b);
}

template <class T>
inline T shift_left(T x, u32 by) {
  using Unsigned = std::make_unsigned_t<T>;
  return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<Unsigned>(x) << by);
}
template <class T>
inline T shift_right(T x, u32 by) {
  if (by >= 8 * sizeof(T)) return x < 0 ? static_cast<T>(-1) : T{0};
  return static_cast<T>(x >> by);
}

/// The upper half of `high`, `low` shifted to the left, or the lower half of them to the right.
inline u32 funnel_shift_left(u32 low, u32 high, u32 by) {
  return static_cast<u32>(((static_cast<u64>(high) << 32 | low) << (by & 31)) >> 32);
}
inline u32 funnel_shift_right(u32 low, u32 high, u32 by) {
  return static_cast<u32>((static_cast<u64>(high) << 32 | low) >> (by & 31));
}

template <class T>
inline u32 count_ones(T x) {
  return static_cast<u32>(std::popcount(x));
}
template <class T>
inline u32 count_leading_zeros(T x) {
  return static_cast<u32>(std::countl_zero(x));
}

/// `bits` of x from bit 0 on, put into `into` from bit `first` on.
template <class T>
inline T insert_bits(T x, T into, u32 first, u32 bits) {
  first &= 0xff;
  bits &= 0xff;
  const T mask = shift_left<T>(bits >= 8 * sizeof(T) ? ~T{0} : shift_left<T>(1, bits) - 1, first);
  return (into & ~mask) | (shift_left<T>(x, first) & mask);
}

/// `bits` of x from bit `first` on; for a signed type extended by the last of them.
template <class T>
inline T extract_bits(T x, u32 first, u32 bits) {
  constexpr u32 kWidth = 8 * sizeof(T);
  first &= 0xff;
  bits &= 0xff;
  const T shifted = shift_right<T>(x, first);
  if (bits >= kWidth) return shifted;
  if (bits == 0) return 0;
  using Unsigned = std::make_unsigned_t<T>;
  const auto low = static_cast<Unsigned>(shifted) & ((Unsigned{1} << bits) - 1);
  if constexpr (std::is_signed_v<T>) {
    const u32 last = first + bits - 1 < kWidth ? first + bits - 1 : kWidth - 1;
    if (x >> last & 1) return static_cast<T>(low | ~((Unsigned{1} << bits) - 1));
  }
  return static_cast<T>(low);
}

/// A float without a fraction as a whole number; the nearest that there is. NaN gives 0.
template <class To, class From>
inline To saturate(From x) {
  if (x != x) return 0;
  // The limits as floats: the upper one is rounded up, to a number past the type's.
  if (x <= static_cast<From>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (x >= static_cast<From>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return static_cast<To>(x);
}

/// x within 0 and 1. NaN gives 0.
inline float saturate_unit(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

}  // namespace ptx
