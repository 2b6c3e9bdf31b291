// SPDX-License-Identifier: Apache-2.0
// The ops as a Python module like lampo._C, on the kernels of csrc/cuda/ and CPU tensors: see
// extension.py.
#include <pybind11/pybind11.h>

#include <exception>

#include "bindings/bind.h"
#include "common/check.h"

PYBIND11_MODULE(cuda_kernels, m) {
  pybind11::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const lampo::TypeMismatch& error) {
      pybind11::set_error(PyExc_TypeError, error.what());
    } catch (const lampo::ArgumentError& error) {
      pybind11::set_error(PyExc_ValueError, error.what());
    }
  });
  lampo::bind_elementwise(m);
  lampo::bind_attention(m);
  lampo::bind_linear(m);
  lampo::bind_sampling(m);
}
