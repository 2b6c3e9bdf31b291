// SPDX-License-Identifier: Apache-2.0
// Storage types of 16 and 8 bits with their scalar conversions, for host and device. Functions have
// internal linkage: the CPU kernels compile this header once per ISA, and the linker could keep the
// AVX-512 form of a shared inline function.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#define LAMPO_HOST_DEVICE __host__ __device__
#else
#define LAMPO_HOST_DEVICE
#endif

namespace lampo {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct F8E4M3 {
  uint8_t bits;
};

LAMPO_HOST_DEVICE static inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

LAMPO_HOST_DEVICE static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

LAMPO_HOST_DEVICE static inline float to_float(float value) { return value; }

LAMPO_HOST_DEVICE static inline float to_float(BF16 value) {
  return float_from_bits(static_cast<uint32_t>(value.bits) << 16);
}

/// Exact for every half, subnormals and infinities included (IEEE 754 binary16).
LAMPO_HOST_DEVICE static inline float to_float(F16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  // A multiplication changes the bias and normalises subnormals; inf and NaN are handled before.
  if (magnitude >= 0x0f800000u) return float_from_bits(sign | 0x70000000u | magnitude);
  return float_from_bits(sign | bits_from_float(float_from_bits(magnitude) * 0x1p112f));
}

/// OCP FP8 E4M3: bias 7, no infinities, NaN is S.1111.111.
LAMPO_HOST_DEVICE static inline float to_float(F8E4M3 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x80u) << 24;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fu);
  if (magnitude == 0x7fu) return float_from_bits(sign | 0x7fc00000u);
  return float_from_bits(sign | bits_from_float(float_from_bits(magnitude << 20) * 0x1p120f));
}

/// Round to nearest, ties to even; NaN stays NaN.
LAMPO_HOST_DEVICE static inline BF16 to_bf16(float value) {
  uint32_t bits = bits_from_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return BF16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return BF16{static_cast<uint16_t>(bits >> 16)};
}

/// Round to nearest, ties to even; overflow gives infinity.
LAMPO_HOST_DEVICE static inline F16 to_f16(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return F16{static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return F16{static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // A subnormal half: adding 0.5 puts its units at the float's last place and rounds them there.
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return F16{static_cast<uint16_t>(sign | (bits_from_float(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return F16{static_cast<uint16_t>(sign | (rounded >> 13))};
}

/// Round to nearest, ties to even; saturates at +-448, NaN stays NaN.
LAMPO_HOST_DEVICE static inline F8E4M3 to_f8e4m3(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return F8E4M3{static_cast<uint8_t>(sign | 0x7fu)};
  if (magnitude >= 0x43e00000u) return F8E4M3{static_cast<uint8_t>(sign | 0x7eu)};
  if (magnitude < 0x3c800000u) {
    // Subnormals come in units of 2^-9: 2^14 has that unit at its last place.
    const float shifted = float_from_bits(magnitude) + 0x1p14f;
    return F8E4M3{static_cast<uint8_t>(sign | (bits_from_float(shifted) - 0x46800000u))};
  }
  const uint32_t rounded = magnitude - 0x3c000000u + 0x7ffffu + ((magnitude >> 20) & 1u);
  return F8E4M3{static_cast<uint8_t>(sign | (rounded >> 20))};
}

template <class T>
LAMPO_HOST_DEVICE static inline T from_float(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else if constexpr (std::is_same_v<T, BF16>) {
    return to_bf16(value);
  } else if constexpr (std::is_same_v<T, F16>) {
    return to_f16(value);
  } else {
    static_assert(std::is_same_v<T, F8E4M3>);
    return to_f8e4m3(value);
  }
}

}  // namespace lampo
