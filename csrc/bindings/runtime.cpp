// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "cpu/thread_pool.h"
#include "cpu/topology.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {

void bind_runtime(py::module_& m) {
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("count"),
        py::call_guard<py::gil_scoped_release>());
  m.def("usable_cores", &cpu::usable_cores);
  m.def("cpu_isa", &cpu_isa);
  m.def("set_cpu_isa", &set_cpu_isa, py::arg("isa"));
  m.def("compiled_isas", &cpu::compiled_isas);
  m.def("runnable_isas", &cpu::runnable_isas);

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
