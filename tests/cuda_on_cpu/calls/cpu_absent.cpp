// SPDX-License-Identifier: Apache-2.0
// csrc/ops/ wants a CPU backend, which no call reaches: every tensor is on the device.
#include "common/check.h"
#include "cpu/backend.h"
#include "cpu/runtime/program.h"

namespace lampo::cpu {

[[noreturn]] static void refuse() { throw BackendError("this program has no CPU kernels"); }

void rms_norm(const RmsNormParams&) { refuse(); }
void layer_norm(const LayerNormParams&) { refuse(); }
void activation(const ActivationParams&) { refuse(); }
void sigmoid_mul(const SigmoidMulParams&) { refuse(); }
void causal_conv(const CausalConvParams&) { refuse(); }
void gated_delta(const GatedDeltaParams&) { refuse(); }
void append_kv(const AppendKvParams&) { refuse(); }
void paged_attention(const PagedAttentionParams&) { refuse(); }
int64_t paged_attention_workspace_size(int64_t, int64_t, int64_t) { refuse(); }
void merge_states(const MergeStatesParams&) { refuse(); }
void linear(const LinearParams&) { refuse(); }
void route_tokens(const RouteParams&) { refuse(); }
void combine_experts(const CombineParams&) { refuse(); }
void pack_weight(const PackWeightParams&) { refuse(); }
void quantize_weight(const QuantizeWeightParams&) { refuse(); }
void embedding(const EmbeddingParams&) { refuse(); }
void sample(const SampleParams&) { refuse(); }
void token_logprobs(const TokenLogprobsParams&) { refuse(); }
int64_t sampling_workspace_size(int64_t) { refuse(); }
Program* recording_program() { return nullptr; }
void Program::add_check(const void*, int64_t, std::function<void()>) { refuse(); }

}  // namespace lampo::cpu
