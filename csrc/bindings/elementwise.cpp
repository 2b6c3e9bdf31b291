// SPDX-License-Identifier: Apache-2.0
#include "bindings/bind.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {

void bind_elementwise(py::module_& m) {
  m.def("rms_norm",
        [](py::handle x, py::handle weight, py::handle residual, py::handle out, double eps) {
          const TensorArg x_("x", x), weight_("weight", weight);
          const OptionalOutArg residual_("residual", residual);
          const OutArg out_("out", out);
          const Stream stream = x_.stream();
          without_gil([&] { rms_norm(x_, weight_, residual_, out_, eps, stream); });
        });

  m.def("layer_norm", [](py::handle x, py::handle weight, py::handle bias, py::handle residual,
                         py::handle out, double eps) {
    const TensorArg x_("x", x), weight_("weight", weight);
    const OptionalArg bias_("bias", bias);
    const OptionalOutArg residual_("residual", residual);
    const OutArg out_("out", out);
    const Stream stream = x_.stream();
    without_gil([&] { layer_norm(x_, weight_, bias_, residual_, out_, eps, stream); });
  });

  m.def("silu_mul", [](py::handle gate_up, py::handle out) {
    const TensorArg gate_up_("gate_up", gate_up);
    const OutArg out_("out", out);
    const Stream stream = gate_up_.stream();
    without_gil([&] { silu_mul(gate_up_, out_, stream); });
  });

  m.def("gelu_mul", [](py::handle gate_up, py::handle out, bool tanh_approximation) {
    const TensorArg gate_up_("gate_up", gate_up);
    const OutArg out_("out", out);
    const Stream stream = gate_up_.stream();
    without_gil([&] { gelu_mul(gate_up_, out_, tanh_approximation, stream); });
  });

  m.def("gelu", [](py::handle x, py::handle out, bool tanh_approximation) {
    const TensorArg x_("x", x);
    const OutArg out_("out", out);
    const Stream stream = x_.stream();
    without_gil([&] { gelu(x_, out_, tanh_approximation, stream); });
  });

  m.def("scale", [](py::handle x, py::handle out, double factor, double soft_cap) {
    const TensorArg x_("x", x);
    const OutArg out_("out", out);
    const Stream stream = x_.stream();
    without_gil([&] { scale(x_, out_, factor, soft_cap, stream); });
  });

  m.def("scale_by_position",
        [](py::handle x, py::handle positions, py::handle out, double beta, int64_t length) {
          const TensorArg x_("x", x), positions_("positions", positions);
          const OutArg out_("out", out);
          const Stream stream = x_.stream();
          without_gil([&] { scale_by_position(x_, positions_, out_, beta, length, stream); });
        });
}

}  // namespace lampo
