// SPDX-License-Identifier: Apache-2.0
#include "ptx/runtime/arithmetic.h"

#include <cfenv>

#include "cuda/device/ptx/arithmetic.cuh"
#include "ptx/runtime/place.h"

namespace ptx {

void divides_by_zero(int line) { fail(line, "divides by zero"); }

float multiply_add_down(float a, float b, float c) {
  // A volatile result: the compiler must not move the operation past the change of mode.
  const int mode = std::fegetround();
  std::fesetround(FE_DOWNWARD);
  volatile float x = a, y = b, z = c;
  volatile float result = std::fmaf(x, y, z);
  std::fesetround(mode);
  return result;
}

float reciprocal_approximate(float x) { return lampo::cuda::reciprocal(x); }

// The instruction reads the upper 32 bits of its operand and writes those of its result, zeros
// below; subnormals are zero before and after. Hardware's last bit is not specified: rounded here.
double reciprocal_approximate(double x) {
  constexpr u64 kUpper = 0xffffffff00000000u;
  constexpr double kSmallestNormal = 0x1p-1022;
  const auto flush = [](double v) {
    return std::fabs(v) < kSmallestNormal ? std::copysign(0.0, v) : v;
  };
  const double exact = 1.0 / flush(as<double>(as<u64>(x) & kUpper));
  if (!(std::fabs(exact) < std::numeric_limits<double>::infinity())) return exact;
  return as<double>((as<u64>(flush(exact)) + 0x80000000u) & kUpper);
}

float exp2_approximate(float x) { return lampo::cuda::exp2_approximate(x); }

u32 multiply_add_bf16x2(u32 a, u32 b, u32 c) {
  return lampo::cuda::multiply_add_pairs<lampo::BF16>(a, b, c);
}
u32 multiply_add_f16x2(u32 a, u32 b, u32 c) {
  return lampo::cuda::multiply_add_pairs<lampo::F16>(a, b, c);
}
u32 pack_bf16x2(float high, float low) { return lampo::cuda::pack_bf16(low, high); }
u32 pack_f16x2(float high, float low) { return lampo::cuda::pack_f16(low, high); }
float widen_f16(u16 bits) { return lampo::cuda::widen_f16(bits); }

// Each digit of the selector names a byte of high:low; its bit 3 asks for the byte's sign instead.
u32 permute_bytes(u32 low, u32 high, u32 selector) {
  const u64 bytes = u64{high} << 32 | low;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 digit = selector >> 4 * i & 0xf;
    const u32 byte = bytes >> 8 * (digit & 7) & 0xff;
    const u32 chosen = (digit & 8) == 0 ? byte : (byte & 0x80) != 0 ? 0xff : 0;
    result |= chosen << 8 * i;
  }
  return result;
}

u32 look_up_bits(u32 a, u32 b, u32 c, u32 table) {
  u32 result = 0;
  for (u32 i = 0; i < 8; ++i) {
    const u32 here = ((i & 4) != 0 ? a : ~a) & ((i & 2) != 0 ? b : ~b) & ((i & 1) != 0 ? c : ~c);
    if ((table >> i & 1) != 0) result |= here;
  }
  return result;
}

}  // namespace ptx
