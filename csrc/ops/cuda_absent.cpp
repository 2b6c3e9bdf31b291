// SPDX-License-Identifier: Apache-2.0
// The CUDA backend of a build without CUDA: every op throws.
#if !LAMPO_WITH_CUDA
#include "common/check.h"
#include "cuda/backend.h"

namespace lampo::cuda {
namespace {

[[noreturn]] void refuse(const char* op) {
  throw BackendError(std::string(op) +
                     ": this build has no CUDA kernels (LAMPO_CUDA=OFF or no compiler at build "
                     "time), rebuild with LAMPO_CUDA=ON");
}

}  // namespace

void rms_norm(const RmsNormParams&, int, Stream) { refuse("rms_norm"); }
void layer_norm(const LayerNormParams&, int, Stream) { refuse("layer_norm"); }
void activation(const ActivationParams& p, int, Stream) { refuse(op_name(p)); }
void sigmoid_mul(const SigmoidMulParams&, int, Stream) { refuse("sigmoid_mul"); }
void causal_conv(const CausalConvParams&, int, Stream) { refuse("causal_conv"); }
void gated_delta(const GatedDeltaParams&, int, Stream) { refuse("gated_delta"); }
void append_kv(const AppendKvParams&, int, Stream) { refuse("append_kv"); }
void paged_attention(const PagedAttentionParams&, int, Stream) { refuse("paged_attention"); }
int64_t paged_attention_workspace_size(const AttentionShape&, int) { refuse("paged_attention"); }
void merge_states(const MergeStatesParams&, int, Stream) { refuse("merge_states"); }
void linear(const LinearParams&, int, Stream) { refuse("linear"); }
void embedding(const EmbeddingParams&, int, Stream) { refuse("embedding"); }
void sample(const SampleParams&, int, Stream) { refuse("sample"); }
void token_logprobs(const TokenLogprobsParams&, int, Stream) { refuse("token_logprobs"); }
int64_t sampling_workspace_size(int64_t, int64_t) { refuse("sample"); }
int64_t captured_nodes(int, Stream) { refuse("captured_nodes"); }
bool read_back(const char* op, const void*, void*, size_t, int, Stream) { refuse(op); }

}  // namespace lampo::cuda
#endif
