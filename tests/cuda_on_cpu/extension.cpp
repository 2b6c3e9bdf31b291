// SPDX-License-Identifier: Apache-2.0
// The ops as a Python module like lampo._C, on the kernels of csrc/cuda/ and CPU tensors: see
// extension.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <utility>

#include "bindings/bind.h"
#include "common/check.h"
#include "simt/runtime.h"

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
  lampo::bind_recurrent(m);
  lampo::bind_attention(m);
  lampo::bind_linear(m);
  lampo::bind_sampling(m);
  lampo::bind_stream(m);
  m.def(
      "take_host_calls",
      [] {
        const simt::Calls calls = std::exchange(simt::host_calls(), {});
        pybind11::list launches;
        for (const auto& [device, stream] : calls.launches) {
          launches.append(std::pair(device, reinterpret_cast<uintptr_t>(stream)));
        }
        return pybind11::dict(pybind11::arg("contexts") = calls.contexts,
                              pybind11::arg("shared_limits") = calls.shared_limits,
                              pybind11::arg("launches") = launches);
      },
      "What the host has asked of the CUDA runtime since the last call: simt/runtime.h.");
}
