// SPDX-License-Identifier: Apache-2.0
// Interface of the CUDA backend for csrc/ops/: the functions of cpu/backend.h, on a device and a
// stream. A function enqueues its work and returns; BackendError: the device cannot do it. In a
// build without CUDA (ops/cuda_absent.cpp) all throw it.
#pragma once

#include "params.h"

namespace lampo::cuda {

void rms_norm(const RmsNormParams& p, int device, Stream stream);
void layer_norm(const LayerNormParams& p, int device, Stream stream);
void activation(const ActivationParams& p, int device, Stream stream);
void sigmoid_mul(const SigmoidMulParams& p, int device, Stream stream);
void causal_conv(const CausalConvParams& p, int device, Stream stream);
void gated_delta(const GatedDeltaParams& p, int device, Stream stream);
void append_kv(const AppendKvParams& p, int device, Stream stream);
void paged_attention(const PagedAttentionParams& p, int device, Stream stream);
int64_t paged_attention_workspace_size(const AttentionShape& shape, int device);
void merge_states(const MergeStatesParams& p, int device, Stream stream);
void linear(const LinearParams& p, int device, Stream stream);
void embedding(const EmbeddingParams& p, int device, Stream stream);
void sample(const SampleParams& p, int device, Stream stream);
void token_logprobs(const TokenLogprobsParams& p, int device, Stream stream);
int64_t sampling_workspace_size(int64_t vocab_size, int64_t batch_size);
/// Number of nodes that a capture of the stream has so far; 0 if it is not captured.
int64_t captured_nodes(int device, Stream stream);
/// Copies device memory to the host and waits for it; false while the stream is captured.
bool read_back(const char* op, const void* from, void* to, size_t bytes, int device, Stream stream);

}  // namespace lampo::cuda
