// SPDX-License-Identifier: Apache-2.0
// The CPU backend as csrc/ops/ sees it: the same functions as cuda/backend.h.
#pragma once

#include "params.h"

namespace lampo::cpu {

void rms_norm(const RmsNormParams& p);
void layer_norm(const LayerNormParams& p);
void activation(const ActivationParams& p);
void sigmoid_mul(const SigmoidMulParams& p);
void causal_conv(const CausalConvParams& p);
void gated_delta(const GatedDeltaParams& p);
void append_kv(const AppendKvParams& p);
void paged_attention(const PagedAttentionParams& p);
int64_t paged_attention_workspace_size(int64_t group_size, int64_t head_dim, int64_t max_seq_len);
void merge_states(const MergeStatesParams& p);
void linear(const LinearParams& p);
void route_tokens(const RouteParams& p);
void combine_experts(const CombineParams& p);
void pack_weight(const PackWeightParams& p);
void quantize_weight(const QuantizeWeightParams& p);
void embedding(const EmbeddingParams& p);
void sample(const SampleParams& p);
void token_logprobs(const TokenLogprobsParams& p);
/// Bytes of workspace that `sample` and `token_logprobs` need for rows of this width.
int64_t sampling_workspace_size(int64_t vocab_size);

}  // namespace lampo::cpu
