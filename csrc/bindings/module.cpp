// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include <exception>

#include "bindings/bind.h"
#include "common/check.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "lampo's native ops. Use lampo.ops: it documents and registers them.";
  m.attr("__version__") = LAMPO_VERSION;
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const lampo::TypeMismatch& error) {
      py::set_error(PyExc_TypeError, error.what());
    } catch (const lampo::ArgumentError& error) {
      py::set_error(PyExc_ValueError, error.what());
    } catch (const lampo::BackendError& error) {
      py::set_error(PyExc_RuntimeError, error.what());
    }
  });
  lampo::bind_runtime(m);
  lampo::bind_program(m);
  lampo::bind_elementwise(m);
  lampo::bind_attention(m);
  lampo::bind_recurrent(m);
  lampo::bind_linear(m);
  lampo::bind_experts(m);
  lampo::bind_sampling(m);
  lampo::bind_stream(m);
}
