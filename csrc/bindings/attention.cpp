// SPDX-License-Identifier: Apache-2.0
#include "bindings/bind.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {

void bind_attention(py::module_& m) {
  m.def("append_kv", [](py::handle q, py::handle k, py::handle v, py::handle k_cache,
                        py::handle v_cache, py::handle slot_mapping, py::handle positions,
                        py::handle cos_sin, bool interleaved, bool hadamard,
                        py::handle q_norm_weight, py::handle k_norm_weight, double eps,
                        py::handle k_scale, py::handle v_scale) {
    const OptionalOutArg q_("q", q), k_scale_("k_scale", k_scale), v_scale_("v_scale", v_scale);
    const TensorArg k_("k", k), v_("v", v), slot_mapping_("slot_mapping", slot_mapping);
    const OutArg k_cache_("k_cache", k_cache), v_cache_("v_cache", v_cache);
    const OptionalArg positions_("positions", positions), cos_sin_("cos_sin", cos_sin);
    const OptionalArg q_norm_weight_("q_norm_weight", q_norm_weight);
    const OptionalArg k_norm_weight_("k_norm_weight", k_norm_weight);
    const Stream stream = k_.stream();
    without_gil([&] {
      append_kv(q_, k_, v_, k_cache_, v_cache_, slot_mapping_, positions_, cos_sin_, interleaved,
                hadamard, q_norm_weight_, k_norm_weight_, eps, k_scale_, v_scale_, stream);
    });
  });

  m.def("paged_attention",
        [](py::handle q, py::handle k_cache, py::handle v_cache, py::handle page_table,
           py::handle seq_lens, py::handle cu_seqlens_q, double softmax_scale, bool causal,
           int64_t sliding_window, double soft_cap, bool deterministic, bool planned,
           py::handle sinks, py::handle k_scale, py::handle v_scale, py::handle lse, py::handle out,
           py::handle workspace) {
          const TensorArg q_("q", q), k_cache_("k_cache", k_cache), v_cache_("v_cache", v_cache);
          const TensorArg page_table_("page_table", page_table), seq_lens_("seq_lens", seq_lens);
          const TensorArg cu_seqlens_q_("cu_seqlens_q", cu_seqlens_q);
          const OptionalArg sinks_("sinks", sinks), k_scale_("k_scale", k_scale);
          const OptionalArg v_scale_("v_scale", v_scale);
          const OptionalOutArg lse_("lse", lse);
          const OutArg out_("out", out), workspace_("workspace", workspace);
          const AttentionOptions options{.softmax_scale = softmax_scale,
                                         .causal = causal,
                                         .sliding_window = sliding_window,
                                         .soft_cap = soft_cap,
                                         .deterministic = deterministic,
                                         .planned = planned};
          const Stream stream = q_.stream();
          without_gil([&] {
            paged_attention(q_, k_cache_, v_cache_, page_table_, seq_lens_, cu_seqlens_q_, options,
                            sinks_, k_scale_, v_scale_, lse_, out_, workspace_, stream);
          });
        });

  m.def(
      "paged_attention_workspace_size",
      [](int64_t num_qo_heads, int64_t num_kv_heads, int64_t head_dim, int64_t max_seq_len,
         int64_t batch_size, int64_t num_tokens, bool deterministic, int cuda_device) {
        return paged_attention_workspace_size(
            cuda_device < 0 ? Device{} : Device{DeviceType::kCUDA, cuda_device},
            {.num_qo_heads = num_qo_heads,
             .num_kv_heads = num_kv_heads,
             .head_dim = head_dim,
             .max_seq_len = max_seq_len,
             .batch_size = batch_size,
             .num_tokens = num_tokens,
             .deterministic = deterministic});
      },
      py::arg("num_qo_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("max_seq_len"),
      py::arg("batch_size") = 0, py::arg("num_tokens") = 0, py::arg("deterministic") = false,
      py::arg("cuda_device") = -1);

  m.def("merge_states",
        [](py::handle out_partial, py::handle lse_partial, py::handle out, py::handle lse) {
          const TensorArg out_partial_("out_partial", out_partial);
          const TensorArg lse_partial_("lse_partial", lse_partial);
          const OutArg out_("out", out);
          const OptionalOutArg lse_("lse", lse);
          const Stream stream = out_partial_.stream();
          without_gil([&] { merge_states(out_partial_, lse_partial_, out_, lse_, stream); });
        });
}

}  // namespace lampo
