// SPDX-License-Identifier: Apache-2.0
#include "bindings/bind.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {
void bind_sampling(py::module_& m) {
  m.def("sample", [](py::handle logits, py::handle temperature, py::handle top_k, py::handle top_p,
                     py::handle min_p, py::handle seeds, py::handle positions,
                     py::handle penalty_ids, py::handle penalty_counts, py::handle cu_penalties,
                     py::handle repetition_penalty, py::handle presence_penalty,
                     py::handle frequency_penalty, py::handle bias_ids, py::handle bias_values,
                     py::handle cu_bias, py::handle allowed_mask, py::handle token_ids,
                     py::handle status, py::handle logprobs, py::handle kept, py::handle num_kept,
                     py::handle processed_logprobs, py::handle workspace) {
    const TensorArg logits_("logits", logits), temperature_("temperature", temperature);
    const OptionalArg top_k_("top_k", top_k), top_p_("top_p", top_p), min_p_("min_p", min_p),
        seeds_("seeds", seeds), positions_("positions", positions),
        penalty_ids_("penalty_ids", penalty_ids), penalty_counts_("penalty_counts", penalty_counts),
        cu_penalties_("cu_penalties", cu_penalties),
        repetition_penalty_("repetition_penalty", repetition_penalty),
        presence_penalty_("presence_penalty", presence_penalty),
        frequency_penalty_("frequency_penalty", frequency_penalty), bias_ids_("bias_ids", bias_ids),
        bias_values_("bias_values", bias_values), cu_bias_("cu_bias", cu_bias),
        allowed_mask_("allowed_mask", allowed_mask);
    const OutArg token_ids_("token_ids", token_ids), status_("status", status),
        workspace_("workspace", workspace);
    const OptionalOutArg logprobs_("logprobs", logprobs), kept_("kept", kept),
        num_kept_("num_kept", num_kept),
        processed_logprobs_("processed_logprobs", processed_logprobs);
    const Stream stream = logits_.stream();
    without_gil([&] {
      sample({.logits = logits_,
              .temperature = temperature_,
              .top_k = top_k_,
              .top_p = top_p_,
              .min_p = min_p_,
              .seeds = seeds_,
              .positions = positions_,
              .penalty_ids = penalty_ids_,
              .penalty_counts = penalty_counts_,
              .cu_penalties = cu_penalties_,
              .repetition_penalty = repetition_penalty_,
              .presence_penalty = presence_penalty_,
              .frequency_penalty = frequency_penalty_,
              .bias_ids = bias_ids_,
              .bias_values = bias_values_,
              .cu_bias = cu_bias_,
              .allowed_mask = allowed_mask_,
              .token_ids = token_ids_,
              .status = status_,
              .logprobs = logprobs_,
              .kept = kept_,
              .num_kept = num_kept_,
              .processed_logprobs = processed_logprobs_,
              .workspace = workspace_},
             stream);
    });
  });

  m.def("token_logprobs", [](py::handle logits, py::handle token_ids, py::handle logprob,
                             py::handle rank, py::handle top_ids, py::handle top_logprobs,
                             py::handle workspace) {
    const TensorArg logits_("logits", logits), token_ids_("token_ids", token_ids);
    const OutArg logprob_("logprob", logprob), rank_("rank", rank), top_ids_("top_ids", top_ids),
        top_logprobs_("top_logprobs", top_logprobs), workspace_("workspace", workspace);
    const Stream stream = logits_.stream();
    without_gil([&] {
      token_logprobs(logits_, token_ids_, logprob_, rank_, top_ids_, top_logprobs_, workspace_,
                     stream);
    });
  });

  m.def(
      "sampling_workspace_size",
      [](int64_t vocab_size, int cuda_device, int64_t batch_size) {
        return sampling_workspace_size(
            vocab_size, cuda_device < 0 ? Device{} : Device{DeviceType::kCUDA, cuda_device},
            batch_size);
      },
      py::arg("vocab_size"), py::arg("cuda_device") = -1, py::arg("batch_size") = 1);
}

}  // namespace lampo
