// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <string>

#include "bindings/bind.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {

void bind_linear(py::module_& m) {
  m.def("linear", [](py::handle x, py::handle weight, int activation_bits, py::handle bias,
                     py::handle norm_weight, double norm_eps, bool silu_mul, bool accumulate,
                     py::handle out, py::handle workspace) {
    const TensorArg x_("x", x), weight_("weight", weight);
    const OptionalArg bias_("bias", bias), norm_weight_("norm_weight", norm_weight);
    const OutArg out_("out", out);
    const OptionalOutArg workspace_("workspace", workspace);
    const LinearOptions options{norm_weight_, norm_eps, silu_mul, accumulate, activation_bits};
    const Stream stream = x_.stream();
    without_gil([&] { linear(x_, weight_, bias_, options, out_, workspace_, stream); });
  });

  m.def("linear_packed", [](py::handle x, py::handle weight, const std::string& format,
                            int activation_bits, py::handle bias, py::handle norm_weight,
                            double norm_eps, bool silu_mul, bool accumulate, py::handle out,
                            py::handle workspace) {
    const TensorArg x_("x", x), weight_("weight", weight);
    const OptionalArg bias_("bias", bias), norm_weight_("norm_weight", norm_weight);
    const OutArg out_("out", out), workspace_("workspace", workspace);
    const LinearOptions options{norm_weight_, norm_eps, silu_mul, accumulate, activation_bits};
    const Stream stream = x_.stream();
    without_gil([&] {
      linear_packed(x_, weight_, parse_weight_format(format), bias_, options, out_, workspace_,
                    stream);
    });
  });

  m.def("quantize_weight", [](py::handle weight, const std::string& format, py::handle blocks) {
    const TensorArg weight_("weight", weight);
    const OutArg blocks_("blocks", blocks);
    without_gil([&] { quantize_weight(weight_, parse_weight_format(format), blocks_); });
  });
  m.def("pack_weight", [](py::handle blocks, const std::string& format, py::handle out) {
    const TensorArg blocks_("blocks", blocks);
    const OutArg out_("out", out);
    without_gil([&] { pack_weight(blocks_, parse_weight_format(format), out_); });
  });

  m.def("packed_block_bytes",
        [](const std::string& format) { return packed_block_bytes(parse_weight_format(format)); });
  m.def("weight_formats", &weight_formats);
  m.def("packed_block_size",
        [](const std::string& format) { return packed_block_size(parse_weight_format(format)); });
  m.def("packed_strip_bytes", [](const std::string& format, int64_t in_features) {
    return packed_strip_bytes(parse_weight_format(format), in_features);
  });
  m.def("linear_workspace_size", &linear_workspace_size, py::arg("num_tokens"),
        py::arg("in_features"));

  m.def("embedding", [](py::handle token_ids, py::handle table, py::handle out, bool accumulate) {
    const TensorArg ids_("token_ids", token_ids), table_("table", table);
    const OutArg out_("out", out);
    const Stream stream = table_.stream();
    without_gil([&] { embedding(ids_, table_, out_, accumulate, stream); });
  });

  m.def("embedding_packed", [](py::handle token_ids, py::handle table, const std::string& format,
                               int64_t vocab_size, py::handle out, bool accumulate) {
    const TensorArg ids_("token_ids", token_ids), table_("table", table);
    const OutArg out_("out", out);
    const Stream stream = table_.stream();
    without_gil([&] {
      embedding_packed(ids_, table_, parse_weight_format(format), vocab_size, out_, accumulate,
                       stream);
    });
  });
}

}  // namespace lampo
