// SPDX-License-Identifier: Apache-2.0
#include "cpu/kernel_table.h"

#define LAMPO_STRING_(x) #x
#define LAMPO_STRING(x) LAMPO_STRING_(x)

namespace lampo::cpu::LAMPO_ISA {

void rms_norm(const RmsNormParams& p, const Team& team);
void layer_norm(const LayerNormParams& p, const Team& team);
void activation(const ActivationParams& p, const Team& team);
void sigmoid_mul(const SigmoidMulParams& p, const Team& team);
void causal_conv(const CausalConvParams& p, const Team& team);
void gated_delta(const GatedDeltaParams& p, const Team& team);
void append_kv(const AppendKvParams& p, const Team& team);
void paged_attention(const PagedAttentionParams& p, const Team& team);
void merge_states(const MergeStatesParams& p, const Team& team);
void linear(const LinearParams& p, const Team& team);
void linear_packed(const LinearParams& p, const Team& team);
void route_tokens(const RouteParams& p, const Team& team);
void combine_experts(const CombineParams& p, const Team& team);
void pack_weight(const PackWeightParams& p, const Team& team);
void quantize_weight(const QuantizeWeightParams& p, const Team& team);
void embedding(const EmbeddingParams& p, const Team& team);
void sample(const SampleParams& p, const Team& team);
void token_logprobs(const TokenLogprobsParams& p, const Team& team);
int64_t peak(Products products, int64_t rounds);

const KernelTable kTable = {
    .isa = LAMPO_STRING(LAMPO_ISA),
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .activation = activation,
    .sigmoid_mul = sigmoid_mul,
    .causal_conv = causal_conv,
    .gated_delta = gated_delta,
    .append_kv = append_kv,
    .paged_attention = paged_attention,
    .merge_states = merge_states,
    .linear = linear,
    .linear_packed = linear_packed,
    .route_tokens = route_tokens,
    .combine_experts = combine_experts,
    .pack_weight = pack_weight,
    .quantize_weight = quantize_weight,
    .embedding = embedding,
    .sample = sample,
    .token_logprobs = token_logprobs,
    .peak = peak,
};

}  // namespace lampo::cpu::LAMPO_ISA
