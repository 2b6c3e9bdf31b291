// SPDX-License-Identifier: Apache-2.0
#include "common/check.h"

#include <algorithm>
#include <sstream>

namespace lampo {

std::string to_string(Device device) {
  if (device.type == DeviceType::kCPU) return "cpu";
  return "cuda:" + std::to_string(device.index);
}

namespace {

template <class Range>
std::string join(const Range& dims) {
  std::ostringstream out;
  out << "[";
  const char* separator = "";
  for (int64_t dim : dims) {
    out << separator;
    if (dim == kAny) {
      out << "*";
    } else {
      out << dim;
    }
    separator = ", ";
  }
  out << "]";
  return out.str();
}

struct Dims {
  const int64_t* first;
  int count;
  const int64_t* begin() const { return first; }
  const int64_t* end() const { return first + count; }
};

}  // namespace

std::string shape_string(const TensorView& t) { return join(Dims{t.shape, t.ndim}); }

void check_that(bool ok, const char* name, const std::string& what) {
  if (!ok) throw ArgumentError(std::string(name) + ": " + what);
}

void check_shape(const char* name, const TensorView& t, std::initializer_list<int64_t> expected) {
  bool ok = t.ndim == static_cast<int>(expected.size());
  int i = 0;
  for (int64_t dim : expected) {
    ok = ok && (dim == kAny || dim == t.shape[i]);
    ++i;
  }
  if (!ok) {
    throw ArgumentError(std::string(name) + ": expected shape " + join(expected) + ", got " +
                        shape_string(t));
  }
}

void check_dtype(const char* name, const TensorView& t, std::initializer_list<DType> supported) {
  if (std::find(supported.begin(), supported.end(), t.dtype) != supported.end()) return;
  std::string list;
  for (const DType* it = supported.begin(); it != supported.end(); ++it) {
    if (std::find(supported.begin(), it, *it) != it) continue;  // named before
    list += (list.empty() ? "" : " or ") + std::string(name_of(*it));
  }
  throw TypeMismatch(std::string(name) + ": expected " + list + ", got " + name_of(t.dtype));
}

void check_inner_contiguous(const char* name, const TensorView& t) {
  const int last = t.ndim - 1;
  if (t.ndim == 0 || t.shape[last] <= 1 || t.stride[last] == 1) return;
  throw ArgumentError(std::string(name) + ": expected a contiguous last dimension, got stride " +
                      std::to_string(t.stride[last]));
}

void check_contiguous(const char* name, const TensorView& t) {
  if (t.numel() == 0) return;  // strides of an empty tensor are arbitrary
  int64_t expected = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] > 1 && t.stride[i] != expected) {
      throw ArgumentError(std::string(name) + ": expected a contiguous tensor, got stride " +
                          std::to_string(t.stride[i]) + " in dimension " + std::to_string(i) +
                          " of shape " + shape_string(t));
    }
    expected *= t.shape[i];
  }
}

void check_writable(const char* name, const TensorView& t) {
  if (t.numel() == 0) return;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] > 1 && t.stride[i] <= 0) {
      throw ArgumentError(std::string(name) +
                          ": is written, so every stride must be positive, got " +
                          std::to_string(t.stride[i]) + " in dimension " + std::to_string(i));
    }
  }
}

void check_device(const char* name, const TensorView& t, Device expected) {
  if (t.device == expected) return;
  throw ArgumentError(std::string(name) + ": expected a tensor on " + to_string(expected) +
                      ", got one on " + to_string(t.device));
}

void check_range(const char* name, double value, double lo, double hi) {
  if (value >= lo && value <= hi) return;
  std::ostringstream what;
  what << name << ": expected a value in [" << lo << ", " << hi << "], got " << value;
  throw ArgumentError(what.str());
}

}  // namespace lampo
