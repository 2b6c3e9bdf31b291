// SPDX-License-Identifier: Apache-2.0
// One bind_<group>() per binding file. A native function takes handles, reads them as TensorArgs,
// and runs the op without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/tensor_arg.h"

namespace lampo {

void bind_attention(pybind11::module_& m);
void bind_elementwise(pybind11::module_& m);
void bind_linear(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);

/// Runs fn() with the GIL released. TensorArgs must outlive the call: their destruction needs the
/// GIL.
template <class Fn>
void without_gil(Fn&& fn) {
  const pybind11::gil_scoped_release release;
  fn();
}

}  // namespace lampo
