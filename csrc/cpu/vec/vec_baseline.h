// SPDX-License-Identifier: Apache-2.0
// F32 in a 128-bit register, by the compiler's vector extensions: SSE2 on x86-64, NEON on aarch64,
// and correct anywhere else.
#pragma once

#include "common/numeric.h"

namespace lampo::cpu::LAMPO_ISA {

static constexpr bool kHasDotBF16 = false;

struct F32 {
  static constexpr int kWidth = 4;
  typedef float Native __attribute__((vector_size(16)));
  Native v;
  F32() : v{} {}
  explicit F32(float x) : v{x, x, x, x} {}
  explicit F32(Native x) : v(x) {}
};

static inline F32 operator+(F32 a, F32 b) { return F32(a.v + b.v); }
static inline F32 operator-(F32 a, F32 b) { return F32(a.v - b.v); }
static inline F32 operator*(F32 a, F32 b) { return F32(a.v * b.v); }
static inline F32 operator/(F32 a, F32 b) { return F32(a.v / b.v); }
static inline F32 operator-(F32 a) { return F32(-a.v); }
static inline F32 in_register(F32 a) { return a; }
static inline F32 fma(F32 a, F32 b, F32 c) { return F32(a.v * b.v + c.v); }
static inline F32 select_less(F32 a, F32 b, F32 x, F32 y) { return F32(a.v < b.v ? x.v : y.v); }
static inline F32 max(F32 a, F32 b) { return select_less(b, a, a, b); }
static inline F32 min(F32 a, F32 b) { return select_less(a, b, a, b); }
/// Rounds by adding and subtracting 1.5 * 2^23; exact for |a| < 2^22.
static inline F32 round_even(F32 a) { return (a + F32(0x1.8p23f)) - F32(0x1.8p23f); }
static inline float reduce_add(F32 a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
static inline float reduce_max(F32 a) {
  const float x = a.v[0] > a.v[1] ? a.v[0] : a.v[1];
  const float y = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return x > y ? x : y;
}
static inline void store_quad_max(float* to, F32 a) { *to = reduce_max(a); }
static inline F32 exp2_int(F32 n) {
  typedef int32_t Ints __attribute__((vector_size(16)));
  const Ints bits = (__builtin_convertvector(n.v, Ints) + 127) << 23;
  F32 result;
  memcpy(&result.v, &bits, sizeof(bits));
  return result;
}

template <class T>
static inline F32 load(const T* p) {
  if constexpr (std::is_integral_v<T>) {
    return F32(F32::Native{static_cast<float>(p[0]), static_cast<float>(p[1]),
                           static_cast<float>(p[2]), static_cast<float>(p[3])});
  } else {
    return F32(F32::Native{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])});
  }
}
static inline F32 load_twice(const float* p) { return F32(F32::Native{p[0], p[0], p[1], p[1]}); }
static inline F32 load_pair(const float* p) { return F32(F32::Native{p[0], p[1], p[0], p[1]}); }
static inline void load_f8_words(const uint8_t* p, F32& even, F32& odd) {
  const auto value = [&](int i) { return to_float(F8E4M3{p[i]}) * 0x1p-8f; };
  even = F32(F32::Native{value(0), value(2), value(4), value(6)});
  odd = F32(F32::Native{value(1), value(3), value(5), value(7)});
}
template <class T>
static inline F32 load_n(const T* p, int n) {
  T buffer[F32::kWidth] = {};
  memcpy(buffer, p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}
template <class T>
static inline void store_n(T* p, F32 a, int n) {
  if constexpr (std::is_same_v<T, int8_t>) a = round_even(min(max(a, F32(-128.0f)), F32(127.0f)));
  for (int i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, int8_t>) {
      p[i] = static_cast<int8_t>(a.v[i]);
    } else {
      p[i] = from_float<T>(a.v[i]);
    }
  }
}
template <class T>
static inline void store(T* p, F32 a) {
  store_n(p, a, F32::kWidth);
}

}  // namespace lampo::cpu::LAMPO_ISA
