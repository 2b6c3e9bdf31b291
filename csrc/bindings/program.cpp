// SPDX-License-Identifier: Apache-2.0
#include "cpu/runtime/program.h"

#include <pybind11/pybind11.h>

#include "bindings/bind.h"

namespace py = pybind11;

namespace lampo {

void bind_program(py::module_& m) {
  using cpu::Program;
  py::class_<Program>(m, "Program",
                      "A recorded list of CPU ops: use lampo.runtime.program.Program.")
      .def(py::init<>())
      .def("begin", &Program::begin)
      .def("end", &Program::end)
      .def("replay", &Program::replay, py::call_guard<ReleasedGil>())
      .def("profile",
           [](const Program& program) {
             std::vector<Program::Timing> timings;
             without_gil([&] { timings = program.profile(); });
             py::list rows;
             for (const Program::Timing& t : timings) {
               rows.append(py::make_tuple(t.name, t.bytes, t.seconds));
             }
             return rows;
           })
      .def("__len__", &Program::size);
}

}  // namespace lampo
