// SPDX-License-Identifier: Apache-2.0
// Tensor arguments: Python objects as TensorViews, by DLPack.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/dlpack_abi.h"
#include "common/tensor_view.h"

namespace lampo {

/// The function that says which stream is current on a CUDA device: index -> cudaStream_t as an
/// integer. The framework's own is meant, so that ops run in order with its work.
void set_current_stream_function(pybind11::function function);

/// The stream for work on a device. Throws TypeMismatch on CUDA if no function says which: the null
/// stream would run beside the framework's work, and outside of the graphs that it captures.
Stream current_stream(Device device);

/// One tensor argument of one call. Keeps the borrowed tensor alive; must be destroyed with the GIL
/// held. Protocols, fastest first: the C exchange API of the object's own type (torch),
/// __dlpack__(max_version=...), __dlpack__().
class TensorArg {
 public:
  enum class Access { kRead, kWrite };

  TensorArg(const char* name, pybind11::handle object, Access access = Access::kRead);
  ~TensorArg();
  TensorArg(const TensorArg&) = delete;
  TensorArg& operator=(const TensorArg&) = delete;

  operator const TensorView&() const { return view_; }
  const TensorView& operator*() const { return view_; }
  /// Null if the argument was None (allowed only through OptionalArg).
  const TensorView* pointer() const { return present_ ? &view_ : nullptr; }
  /// The current stream of this tensor's device: see current_stream().
  Stream stream() const { return current_stream(view_.device); }

 protected:
  TensorArg() = default;
  void read(const char* name, pybind11::handle object, Access access);

 private:
  void fill(const char* name, const dlpack::Tensor& tensor);
  void read_capsule(const char* name, pybind11::handle object, Access access);

  TensorView view_;
  bool present_ = false;
  dlpack::ManagedTensor* legacy_ = nullptr;
  dlpack::ManagedTensorVersioned* versioned_ = nullptr;
};

struct OutArg : TensorArg {
  OutArg(const char* name, pybind11::handle object) : TensorArg(name, object, Access::kWrite) {}
};

struct OptionalArg : TensorArg {
  OptionalArg(const char* name, pybind11::handle object, Access access = Access::kRead) {
    if (!object.is_none()) read(name, object, access);
  }
  operator OptionalTensor() const { return pointer(); }
};

struct OptionalOutArg : OptionalArg {
  OptionalOutArg(const char* name, pybind11::handle object)
      : OptionalArg(name, object, Access::kWrite) {}
};

}  // namespace lampo
