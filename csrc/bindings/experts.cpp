// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/bind.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {

void bind_experts(py::module_& m) {
  m.def("route_tokens",
        [](py::handle logits, bool normalized, py::handle experts, py::handle weights,
           py::handle rows, py::handle x_rows, py::handle offsets) {
          const TensorArg logits_("logits", logits);
          const OutArg experts_("experts", experts), weights_("weights", weights);
          const OutArg rows_("rows", rows), x_rows_("x_rows", x_rows), offsets_("offsets", offsets);
          const Routing to{experts_, weights_, rows_, x_rows_, offsets_};
          without_gil([&] { route_tokens(logits_, normalized, to); });
        });

  m.def("expert_linear",
        [](py::handle x, py::handle weight, const std::optional<std::string>& format,
           int activation_bits, py::handle bias, py::handle offsets, py::handle x_rows,
           py::handle norm_weight, double norm_eps, bool silu_mul, double swiglu_limit,
           py::handle out, py::handle workspace) {
          const TensorArg x_("x", x), weight_("weight", weight), offsets_("offsets", offsets);
          const OptionalArg bias_("bias", bias), x_rows_("x_rows", x_rows);
          const OptionalArg norm_weight_("norm_weight", norm_weight);
          const OutArg out_("out", out), workspace_("workspace", workspace);
          const LinearOptions options{norm_weight_, norm_eps,        silu_mul,
                                      false,        activation_bits, swiglu_limit};
          without_gil([&] {
            WeightFormat parsed{};
            if (format.has_value()) parsed = parse_weight_format(*format);
            expert_linear(x_, weight_, format.has_value() ? &parsed : nullptr, bias_, offsets_,
                          x_rows_, options, out_, workspace_);
          });
        });

  m.def("combine_experts",
        [](py::handle y, py::handle rows, py::handle weights, bool accumulate, py::handle out) {
          const TensorArg y_("y", y), rows_("rows", rows), weights_("weights", weights);
          const OutArg out_("out", out);
          without_gil([&] { combine_experts(y_, rows_, weights_, accumulate, out_); });
        });
}

}  // namespace lampo
