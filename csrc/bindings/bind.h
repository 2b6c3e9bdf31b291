// SPDX-License-Identifier: Apache-2.0
// One bind_<group>() per binding file. A native function takes handles, reads them as TensorArgs,
// and runs the op without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

#include "bindings/tensor_arg.h"

namespace lampo {

void bind_attention(pybind11::module_& m);
void bind_elementwise(pybind11::module_& m);
void bind_experts(pybind11::module_& m);
void bind_linear(pybind11::module_& m);
void bind_program(pybind11::module_& m);
void bind_recurrent(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_stream(pybind11::module_& m);

/// Releases the GIL within a scope.
///
/// When the interpreter has ended, Python before 3.14 unwinds the stack of a thread that asks for
/// the GIL. C++ cannot be unwound here: the process would abort. Instead such a thread, a daemon,
/// waits for the end of the process, as Python 3.14 has it.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* state_;
};

/// Runs fn() with the GIL released. TensorArgs must outlive the call: their destruction needs the
/// GIL.
template <class Fn>
void without_gil(Fn&& fn) {
  const ReleasedGil released;
  fn();
}

}  // namespace lampo
