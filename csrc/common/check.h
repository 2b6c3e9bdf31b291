// SPDX-License-Identifier: Apache-2.0
// Checks of an op's arguments: an error names the argument, the expected value and the found one.
// ArgumentError becomes ValueError in Python, TypeMismatch becomes TypeError.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "common/tensor_view.h"

namespace lampo {

struct ArgumentError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
struct TypeMismatch : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
/// The machine cannot run the op: no GPU, no such ISA, a failed launch.
struct BackendError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Dimension that check_shape accepts with any size.
inline constexpr int64_t kAny = -1;

std::string to_string(Device device);
std::string shape_string(const TensorView& t);

/// Throws ArgumentError("<name>: <what>") unless ok.
void check_that(bool ok, const char* name, const std::string& what);
void check_shape(const char* name, const TensorView& t, std::initializer_list<int64_t> expected);
void check_dtype(const char* name, const TensorView& t, std::initializer_list<DType> supported);
/// The last dimension is contiguous; the others may have any stride.
void check_inner_contiguous(const char* name, const TensorView& t);
void check_contiguous(const char* name, const TensorView& t);
/// No stride is zero or negative in a dimension larger than one: the op writes through it.
void check_writable(const char* name, const TensorView& t);
void check_device(const char* name, const TensorView& t, Device expected);
/// lo <= value <= hi and not NaN.
void check_range(const char* name, double value, double lo, double hi);

}  // namespace lampo
