// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/topology.h"
#include "cuda/linear/linear_tile.h"
#include "cuda/runtime/device_info.h"
#include "cuda/runtime/row_layout.h"
#include "cuda/sampling/sample_plan.h"
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
  const py::gil_scoped_release release;
  return cuda_info(measure_free);
}

}  // namespace

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
      "cuda_info", [](bool measure_free) { return to_dict(cuda_info_without_gil(measure_free)); },
      py::arg("measure_free") = false);
  m.def("cuda_kernel_image_for", &kernel_image_for, py::arg("architectures"), py::arg("major"),
        py::arg("minor"));
  m.def(
      "cuda_row_layout",
      [](int64_t hidden_size, int element_size) {
        const cuda::RowLayout layout = cuda::choose_row_layout(hidden_size, element_size);
        return py::make_tuple(layout.threads_per_row, layout.rows_per_block, layout.rounds);
      },
      py::arg("hidden_size"), py::arg("element_size"));
  m.def(
      "cuda_element_layout",
      [](int64_t size, int element_size) {
        const cuda::ElementLayout layout = cuda::choose_element_layout(size, element_size);
        return py::make_tuple(layout.threads, layout.blocks_per_row);
      },
      py::arg("size"), py::arg("element_size"));
  m.def(
      "cuda_sample_plan",
      [](int64_t batch_size, int64_t vocab_size, int num_sms) {
        const int64_t rows = cuda::rows_at_once(batch_size, vocab_size);
        return py::make_tuple(rows, cuda::choose_parts(rows, vocab_size, num_sms),
                              cuda::sample_workspace_bytes(batch_size, vocab_size));
      },
      py::arg("batch_size"), py::arg("vocab_size"), py::arg("num_sms"));
  m.def(
      "cuda_linear_tile",
      [](int64_t num_tokens, int64_t in_features, int64_t out_columns, bool gated, int chunk_bytes,
         int in_flight, int num_sms, int64_t shared_bytes) {
        const cuda::LinearTile tile = cuda::choose_linear_tile(
            {num_tokens, in_features, out_columns, gated, chunk_bytes, in_flight}, num_sms,
            shared_bytes);
        using py::literals::operator""_a;
        return py::dict("strips"_a = tile.strips, "tokens"_a = tile.tokens,
                        "num_groups"_a = tile.num_groups, "slab_rounds"_a = tile.slab_rounds,
                        "one_slab"_a = tile.one_slab, "x_bytes"_a = tile.x_bytes,
                        "shared_bytes"_a = tile.shared_bytes);
      },
      py::arg("num_tokens"), py::arg("in_features"), py::arg("out_columns"), py::arg("gated"),
      py::arg("chunk_bytes"), py::arg("in_flight"), py::arg("num_sms"), py::arg("shared_bytes"));

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
