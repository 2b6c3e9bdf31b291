// SPDX-License-Identifier: Apache-2.0
// Elementary functions on F32, from range reduction and polynomials; errors are measured in
// tests/ops/test_activation.py.
#pragma once

#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

/// e^x, relative error below 2e-7; 0 below -87.3, inf above 88.7. NaN is not preserved.
static inline F32 exp(F32 x) {
  x = min(max(x, F32(-88.0f)), F32(88.8f));
  // x = n ln2 + r, |r| <= ln2 / 2, with ln2 in two pieces so that n ln2 is exact.
  const F32 n = round_even(x * F32(1.44269504089f));
  F32 r = fma(n, F32(-0.693359375f), x);
  r = fma(n, F32(2.12194440e-4f), r);
  // Minimax polynomial of (e^r - 1 - r) / r^2.
  F32 p = F32(1.9875691500e-4f);
  p = fma(p, r, F32(1.3981999507e-3f));
  p = fma(p, r, F32(8.3334519073e-3f));
  p = fma(p, r, F32(4.1665795894e-2f));
  p = fma(p, r, F32(1.6666665459e-1f));
  p = fma(p, r, F32(5.0000001201e-1f));
  p = fma(p, r * r, r + F32(1.0f));
  // In two steps: 2^128 is no float, but e^88.7 is.
  const F32 half = round_even(n * F32(0.5f));
  return p * exp2_int(half) * exp2_int(n - half);
}

/// e^x for x <= 0, relative error below 2e-7; exactly 0 below -87.3, NaN stays NaN.
static inline F32 exp_nonpositive(F32 x) {
  const F32 n = round_even(max(F32(-88.0f), x) * F32(1.44269504089f));
  F32 r = fma(n, F32(-0.693359375f), x);
  r = fma(n, F32(2.12194440e-4f), r);
  F32 p = F32(1.9875691500e-4f);
  p = fma(p, r, F32(1.3981999507e-3f));
  p = fma(p, r, F32(8.3334519073e-3f));
  p = fma(p, r, F32(4.1665795894e-2f));
  p = fma(p, r, F32(1.6666665459e-1f));
  p = fma(p, r, F32(5.0000001201e-1f));
  p = fma(p, r * r, r + F32(1.0f));
  return select_less(x, F32(-87.3f), F32(), p * exp2_int(n));
}

static inline F32 sigmoid(F32 x) { return F32(1.0f) / (F32(1.0f) + exp(-x)); }

static inline F32 tanh(F32 x) {
  // Near 0, 2 sigmoid(2x) - 1 would cancel: use x - x^3/3 + 2x^5/15 - 17x^7/315 there.
  const F32 magnitude = max(x, -x);
  const F32 square = x * x;
  F32 p = fma(square, F32(-17.0f / 315.0f), F32(2.0f / 15.0f));
  p = fma(p, square, F32(-1.0f / 3.0f));
  const F32 series = fma(p * square, x, x);
  const F32 far = F32(2.0f) * sigmoid(x + x) - F32(1.0f);
  return select_less(magnitude, F32(0.25f), series, far);
}

/// erf by Abramowitz and Stegun 7.1.26: absolute error below 2e-7 before rounding.
static inline F32 erf(F32 x) {
  const F32 magnitude = max(x, -x);
  const F32 t = F32(1.0f) / fma(magnitude, F32(0.3275911f), F32(1.0f));
  F32 p = F32(1.061405429f);
  p = fma(p, t, F32(-1.453152027f));
  p = fma(p, t, F32(1.421413741f));
  p = fma(p, t, F32(-0.284496736f));
  p = fma(p, t, F32(0.254829592f));
  const F32 value = F32(1.0f) - p * t * exp(-(magnitude * magnitude));
  return select_less(x, F32(), -value, value);
}

}  // namespace lampo::cpu::LAMPO_ISA
