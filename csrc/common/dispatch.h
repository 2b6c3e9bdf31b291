// SPDX-License-Identifier: Apache-2.0
// Dispatch of run-time values to template arguments:
//
//   dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() { run<T>(p); });
//   dispatch_int<64, 128>(p.head_dim, [&]<int kHeadDim>() { run<kHeadDim>(p); });
#pragma once

#include "common/numeric.h"
#include "common/tensor_view.h"

namespace lampo {

template <class T>
inline constexpr DType kDTypeOf = DType::kF32;
template <>
inline constexpr DType kDTypeOf<F16> = DType::kF16;
template <>
inline constexpr DType kDTypeOf<BF16> = DType::kBF16;
template <>
inline constexpr DType kDTypeOf<F8E4M3> = DType::kF8E4M3;
template <>
inline constexpr DType kDTypeOf<int8_t> = DType::kI8;
template <>
inline constexpr DType kDTypeOf<int32_t> = DType::kI32;
template <>
inline constexpr DType kDTypeOf<int64_t> = DType::kI64;

/// Calls fn.template operator()<T>() for the T of `dtype`; false if it is none of Ts. csrc/ops/
/// refuses other types earlier, so kernels may ignore the result.
template <class... Ts, class Fn>
static inline bool dispatch_dtype(DType dtype, Fn&& fn) {
  return ((dtype == kDTypeOf<Ts> && (fn.template operator()<Ts>(), true)) || ...);
}

template <int... kValues, class Fn>
static inline bool dispatch_int(int64_t value, Fn&& fn) {
  return ((value == kValues && (fn.template operator()<kValues>(), true)) || ...);
}

}  // namespace lampo
