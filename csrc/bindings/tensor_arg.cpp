// SPDX-License-Identifier: Apache-2.0
#include "bindings/tensor_arg.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/check.h"

namespace py = pybind11;

namespace lampo {
namespace {

DType dtype_of(const char* name, dlpack::DataType type) {
  if (type.lanes == 1) {
    switch (type.code * 256 + type.bits) {
      case dlpack::kFloat * 256 + 32:
        return DType::kF32;
      case dlpack::kFloat * 256 + 16:
        return DType::kF16;
      case dlpack::kBfloat * 256 + 16:
        return DType::kBF16;
      case dlpack::kFloat8E4M3FN * 256 + 8:
        return DType::kF8E4M3;
      case dlpack::kInt * 256 + 8:
        return DType::kI8;
      case dlpack::kInt * 256 + 32:
        return DType::kI32;
      case dlpack::kInt * 256 + 64:
        return DType::kI64;
      case dlpack::kUInt * 256 + 8:
        return DType::kU8;
      case dlpack::kBool * 256 + 8:
        return DType::kBool;
      default:
        break;
    }
  }
  throw TypeMismatch(std::string(name) + ": unsupported dtype (DLPack code " +
                     std::to_string(type.code) + ", " + std::to_string(type.bits) + " bits)");
}

Device device_of(const char* name, dlpack::Device device) {
  switch (device.type) {
    case dlpack::kCpu:
      return {DeviceType::kCPU, 0};
    case dlpack::kCuda:
    case dlpack::kCudaManaged:
      return {DeviceType::kCUDA, device.index};
    case dlpack::kCudaHost:
      return {DeviceType::kCPU, 0};
    default:
      throw ArgumentError(std::string(name) + ": unsupported device (DLPack type " +
                          std::to_string(device.type) + "), expected a CPU or CUDA tensor");
  }
}

/// The exchange API that this type itself declares. A subclass that inherits it may have no data (a
/// fake tensor), so its __dlpack__ method is used.
const dlpack::ExchangeApi* exchange_api_of(PyTypeObject* type) {
  // Guarded by the GIL. The list stays short; types that declare the API live as long as the
  // process.
  static PyTypeObject* last_type = nullptr;
  static const dlpack::ExchangeApi* last_api = nullptr;
  if (type == last_type) return last_api;
  PyObject* own = type->tp_dict;
  PyObject* capsule =
      own != nullptr ? PyDict_GetItemString(own, "__dlpack_c_exchange_api__") : nullptr;
  if (capsule == nullptr || !PyCapsule_CheckExact(capsule)) return nullptr;
  auto* api =
      static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  while (api != nullptr && api->version.major != 1) api = api->previous;
  if (api == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  Py_INCREF(reinterpret_cast<PyObject*>(type));
  last_type = type;
  last_api = api;
  return api;
}

/// Error line for an argument that its producer refused to export: name and reason.
[[noreturn]] void throw_unreadable(const char* name, const py::error_already_set& error) {
  std::string why = py::str(error.value());
  why.resize(std::min(why.size(), why.find('\n')));  // torch appends its C++ stack
  throw TypeMismatch(std::string(name) + ": cannot be read by DLPack: " + why);
}

/// __dlpack__ refuses tensors that require gradients; detached ones have the same data.
py::object without_gradient(py::handle object) {
  const py::object flag = py::getattr(object, "requires_grad", py::bool_(false));
  return flag.is(py::bool_(true)) ? object.attr("detach")()
                                  : py::reinterpret_borrow<py::object>(object);
}

/// Function of set_current_stream_function(). Guarded by the GIL. Never freed: it may be asked for
/// while the interpreter ends.
PyObject* stream_function = nullptr;

}  // namespace

void set_current_stream_function(py::function function) {
  PyObject* before = std::exchange(stream_function, function.release().ptr());
  Py_XDECREF(before);
}

Stream current_stream(Device device) {
  if (device.type == DeviceType::kCPU) return {};
  if (stream_function == nullptr) {
    throw TypeMismatch("the current stream of cuda:" + std::to_string(device.index) +
                       " is unknown: import lampo.ops, which asks torch for it, or call "
                       "lampo._C.set_current_stream_function");
  }
  const py::object handle = py::handle(stream_function)(device.index);
  return {reinterpret_cast<void*>(handle.cast<uintptr_t>())};
}

namespace {

/// Arguments of __dlpack__: on CUDA the stream of the op, for which the producer makes the data
/// ready. DLPack writes the null stream as 1.
py::dict export_arguments(const py::object& object) {
  py::dict arguments;
  if (!py::hasattr(object, "__dlpack_device__")) return arguments;
  const py::tuple device = object.attr("__dlpack_device__")();
  const int type = device[0].cast<int>();
  if (type == dlpack::kCuda || type == dlpack::kCudaManaged) {
    const void* stream = current_stream({DeviceType::kCUDA, device[1].cast<int>()}).handle;
    arguments["stream"] = stream == nullptr ? 1 : reinterpret_cast<uintptr_t>(stream);
  }
  return arguments;
}

py::object export_capsule(py::handle object) {
  const py::object detached = without_gradient(object);
  const py::object export_ = detached.attr("__dlpack__");
  const py::dict arguments = export_arguments(detached);
  try {
    return export_(py::arg("max_version") = py::make_tuple(1, 0), **arguments);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    return export_(**arguments);  // older than DLPack 1.0
  }
}

}  // namespace

TensorArg::TensorArg(const char* name, py::handle object, Access access) {
  read(name, object, access);
}

TensorArg::~TensorArg() {
  if (versioned_ != nullptr && versioned_->deleter != nullptr) versioned_->deleter(versioned_);
  if (legacy_ != nullptr && legacy_->deleter != nullptr) legacy_->deleter(legacy_);
}

void TensorArg::read(const char* name, py::handle object, Access access) {
  present_ = true;
  const dlpack::ExchangeApi* api = exchange_api_of(Py_TYPE(object.ptr()));
  if (api == nullptr) return read_capsule(name, object, access);
  dlpack::Tensor tensor;
  if (api->tensor_from_object(object.ptr(), &tensor) != 0) {
    throw_unreadable(name, py::error_already_set());
  }
  fill(name, tensor);
}

void TensorArg::read_capsule(const char* name, py::handle object, Access access) {
  if (!py::hasattr(object, "__dlpack__")) {
    throw TypeMismatch(std::string(name) + ": expected a tensor (anything with __dlpack__), got " +
                       Py_TYPE(object.ptr())->tp_name);
  }
  py::object capsule;
  try {
    capsule = export_capsule(object);
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;  // KeyboardInterrupt
    throw_unreadable(name, error);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    versioned_ = static_cast<dlpack::ManagedTensorVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
    if (access == Access::kWrite && (versioned_->flags & dlpack::kReadOnly) != 0) {
      throw ArgumentError(std::string(name) + ": is written, but the array is read-only");
    }
    return fill(name, versioned_->tensor);
  }
  if (!PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    throw TypeMismatch(std::string(name) + ": __dlpack__ did not return a DLPack capsule");
  }
  legacy_ = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  fill(name, legacy_->tensor);
}

void TensorArg::fill(const char* name, const dlpack::Tensor& tensor) {
  if (tensor.ndim > kMaxDims) {
    throw ArgumentError(std::string(name) + ": expected at most " + std::to_string(kMaxDims) +
                        " dimensions, got " + std::to_string(tensor.ndim));
  }
  view_.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view_.dtype = dtype_of(name, tensor.dtype);
  view_.device = device_of(name, tensor.device);
  view_.ndim = tensor.ndim;
  int64_t compact = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    view_.shape[i] = tensor.shape[i];
    view_.stride[i] = tensor.strides != nullptr ? tensor.strides[i] : compact;
    compact *= tensor.shape[i];
  }
}

}  // namespace lampo
