// SPDX-License-Identifier: Apache-2.0
#include "bindings/bind.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {

void bind_recurrent(py::module_& m) {
  m.def("sigmoid_mul", [](py::handle x, py::handle gate, py::handle out) {
    const TensorArg x_("x", x), gate_("gate", gate);
    const OutArg out_("out", out);
    const Stream stream = x_.stream();
    without_gil([&] { sigmoid_mul(x_, gate_, out_, stream); });
  });

  m.def("causal_conv", [](py::handle x, py::handle weight, py::handle bias, py::handle state,
                          py::handle state_slots, py::handle seq_lens, py::handle cu_seqlens_q,
                          py::handle gate_in, py::handle gate_out, bool silu, py::handle out) {
    const TensorArg x_("x", x), weight_("weight", weight);
    const TensorArg state_slots_("state_slots", state_slots), seq_lens_("seq_lens", seq_lens);
    const TensorArg cu_seqlens_q_("cu_seqlens_q", cu_seqlens_q);
    const OptionalArg bias_("bias", bias), gate_in_("gate_in", gate_in);
    const OptionalArg gate_out_("gate_out", gate_out);
    const OutArg state_("state", state), out_("out", out);
    const Stream stream = x_.stream();
    without_gil([&] {
      causal_conv(x_, weight_, bias_, state_, state_slots_, seq_lens_, cu_seqlens_q_, gate_in_,
                  gate_out_, silu, out_, stream);
    });
  });

  m.def("gated_delta",
        [](py::handle q, py::handle k, py::handle v, py::handle a, py::handle b, py::handle decay,
           py::handle dt_bias, py::handle state, py::handle state_slots, py::handle seq_lens,
           py::handle cu_seqlens_q, bool tiled, double scale, py::handle gate,
           py::handle norm_weight, double eps, py::handle out) {
          const TensorArg q_("q", q), k_("k", k), v_("v", v), a_("a", a), b_("b", b);
          const TensorArg decay_("decay", decay), dt_bias_("dt_bias", dt_bias);
          const TensorArg state_slots_("state_slots", state_slots), seq_lens_("seq_lens", seq_lens);
          const TensorArg cu_seqlens_q_("cu_seqlens_q", cu_seqlens_q);
          const OptionalArg gate_("gate", gate), norm_weight_("norm_weight", norm_weight);
          const OutArg state_("state", state), out_("out", out);
          const Stream stream = v_.stream();
          without_gil([&] {
            gated_delta(q_, k_, v_, a_, b_, decay_, dt_bias_, state_, state_slots_, seq_lens_,
                        cu_seqlens_q_, tiled, scale, gate_, norm_weight_, eps, out_, stream);
          });
        });
}

}  // namespace lampo
