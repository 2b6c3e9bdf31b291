// SPDX-License-Identifier: Apache-2.0
// The functions that every ISA provides. A kernel is run by all threads of a team (team.h), never
// throws, and allocates nothing.
#pragma once

#include "cpu/runtime/team.h"
#include "params.h"

namespace lampo::cpu {

/// Types of factors that kernels multiply with instructions of their own.
enum class Products { kF32, kBF16, kInt8 };

template <class Params>
using Kernel = void (*)(const Params& params, const Team& team);

struct KernelTable {
  const char* isa;
  Kernel<RmsNormParams> rms_norm;
  Kernel<LayerNormParams> layer_norm;
  Kernel<ActivationParams> activation;
  Kernel<SigmoidMulParams> sigmoid_mul;
  Kernel<CausalConvParams> causal_conv;
  Kernel<GatedDeltaParams> gated_delta;
  Kernel<AppendKvParams> append_kv;
  Kernel<PagedAttentionParams> paged_attention;
  Kernel<MergeStatesParams> merge_states;
  Kernel<LinearParams> linear;
  Kernel<LinearParams> linear_packed;
  Kernel<RouteParams> route_tokens;
  Kernel<CombineParams> combine_experts;
  Kernel<PackWeightParams> pack_weight;
  Kernel<QuantizeWeightParams> quantize_weight;
  Kernel<EmbeddingParams> embedding;
  Kernel<SampleParams> sample;
  Kernel<TokenLogprobsParams> token_logprobs;
  int64_t (*peak)(Products products, int64_t rounds);  // returns the number of operations
};

namespace baseline {
extern const KernelTable kTable;
}
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}

/// The table in use: LAMPO_CPU_ISA, else the best this CPU can run.
const KernelTable& kernels();

}  // namespace lampo::cpu
