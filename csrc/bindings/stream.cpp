// SPDX-License-Identifier: Apache-2.0
#include "bindings/bind.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {

void bind_stream(py::module_& m) {
  m.def("set_current_stream_function", &set_current_stream_function, py::arg("function"));
  m.def(
      "captured_nodes",
      [](int cuda_device) {
        const Device device{DeviceType::kCUDA, cuda_device};
        return captured_nodes(device, current_stream(device));
      },
      py::arg("cuda_device"));
}

}  // namespace lampo
