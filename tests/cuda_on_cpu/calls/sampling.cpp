// SPDX-License-Identifier: Apache-2.0
#include "calls/call.h"

namespace {

/// Enough memory, and not a byte more, which is a tensor of the call in all but the caller's eyes.
lampo::TensorView workspace_for(const lampo::TensorView& logits, Tensor* memory) {
  const int64_t bytes =
      lampo::sampling_workspace_size(logits.shape[1], logits.device, logits.shape[0]);
  memory->memory.reset(static_cast<char*>(malloc(static_cast<size_t>(bytes))));
  lampo::TensorView view;
  view.data = memory->memory.get();
  view.dtype = lampo::DType::kU8;
  view.device = logits.device;
  view.ndim = 1;
  view.shape[0] = bytes;
  view.stride[0] = 1;
  return view;
}

}  // namespace

const Calls kSamplingCalls = {
    {"sample",
     [](const Call& c) {
       Tensor memory;
       lampo::sample({.logits = c["logits"],
                      .temperature = c["temperature"],
                      .top_k = c.optional("top_k"),
                      .top_p = c.optional("top_p"),
                      .min_p = c.optional("min_p"),
                      .seeds = c.optional("seeds"),
                      .positions = c.optional("positions"),
                      .penalty_ids = c.optional("penalty_ids"),
                      .penalty_counts = c.optional("penalty_counts"),
                      .cu_penalties = c.optional("cu_penalties"),
                      .repetition_penalty = c.optional("repetition_penalty"),
                      .presence_penalty = c.optional("presence_penalty"),
                      .frequency_penalty = c.optional("frequency_penalty"),
                      .bias_ids = c.optional("bias_ids"),
                      .bias_values = c.optional("bias_values"),
                      .cu_bias = c.optional("cu_bias"),
                      .allowed_mask = c.optional("allowed_mask"),
                      .token_ids = c["token_ids"],
                      .status = c["status"],
                      .logprobs = c.optional("logprobs"),
                      .kept = c.optional("kept"),
                      .num_kept = c.optional("num_kept"),
                      .processed_logprobs = c.optional("processed_logprobs"),
                      .workspace = workspace_for(c["logits"], &memory)});
     }},
    {"token_logprobs",
     [](const Call& c) {
       Tensor memory;
       lampo::token_logprobs(c["logits"], c["token_ids"], c["logprob"], c["rank"], c["top_ids"],
                             c["top_logprobs"], workspace_for(c["logits"], &memory));
     }},
};
