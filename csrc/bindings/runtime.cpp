// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/topology.h"
#include "cuda_info.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {
namespace {

py::dict to_dict(const CudaDevice& device) {
  using py::literals::operator""_a;
  return py::dict("index"_a = device.index, "name"_a = device.name, "major"_a = device.major,
                  "minor"_a = device.minor, "num_sms"_a = device.num_sms,
                  "memory_total"_a = device.memory_total, "memory_free"_a = device.memory_free,
                  "kernel_image"_a = device.kernel_image, "why"_a = device.why);
}

py::dict to_dict(const CudaInfo& info) {
  using py::literals::operator""_a;
  py::list devices;
  for (const CudaDevice& device : info.devices) devices.append(to_dict(device));
  return py::dict("compiled"_a = info.compiled, "decision"_a = info.decision, "why"_a = info.why,
                  "architectures"_a = info.architectures,
                  "runtime_version"_a = info.runtime_version,
                  "driver_version"_a = info.driver_version, "devices"_a = devices);
}

CudaInfo cuda_info_without_gil(bool measure_free) {
  const ReleasedGil released;
  return cuda_info(measure_free);
}

}  // namespace

void bind_runtime(py::module_& m) {
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("count"), py::call_guard<ReleasedGil>());
  m.def("usable_cores", &cpu::usable_cores);
  m.def("cgroup_cpus", &cpu::cgroup_cpus, py::arg("root") = "");
  m.def("cpu_isa", &cpu_isa);
  m.def("set_cpu_isa", &set_cpu_isa, py::arg("isa"));
  m.def("compiled_isas", &cpu::compiled_isas);
  m.def("runnable_isas", &cpu::runnable_isas);
  m.def("peak_rate", &peak_rate, py::arg("products"), py::call_guard<ReleasedGil>());

  m.def(
      "cuda_info", [](bool measure_free) { return to_dict(cuda_info_without_gil(measure_free)); },
      py::arg("measure_free") = false);

  m.def(
      "call_cost",
      [](py::handle t0, py::handle t1, py::handle t2, py::handle t3, py::handle t4, py::handle t5) {
        const TensorArg a("t0", t0), b("t1", t1), c("t2", t2), d("t3", t3), e("t4", t4),
            f("t5", t5);
        without_gil([] {});
      },
      "Reads six tensors and does nothing: what a native call costs before its work begins.");
}

}  // namespace lampo
