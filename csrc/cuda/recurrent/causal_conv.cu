// SPDX-License-Identifier: Apache-2.0
// A causal depthwise convolution over time with a state per sequence:
//   input_t = gate_in_t * x_t;  y_t = bias + sum_j weight[j] input_{t - width + 1 + j};
//   out_t = gate_out_t * silu(y_t)
// The twin of cpu/recurrent/causal_conv.cpp.
//
// A thread passes all new tokens of a sequence in one channel, with the last width - 1 inputs in
// registers; a block has 128 neighbouring channels, so loads of a token are coalesced. Every output
// is the same chain of multiply-adds whatever the split into calls.
//
// Bytes: x, out and gates once, the state twice. Memory-bound with many channels or sequences; one
// long prompt is bound by the latency of a token. Not tried: threads along time.
//
// Limits: none on shapes. A sequence without new tokens, or with a slot out of range, is skipped.
// Not run on a GPU yet: run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/convert.cuh"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/runtime/launch.h"

namespace lampo::cuda {
namespace {

constexpr int kThreads = 128;

/// One channel of a sequence.
template <class T, int kWidth>
__device__ inline void convolve(const CausalConvParams& p, int64_t seq, int64_t channel) {
  const int64_t begin = p.batch.cu_seqlens_q[seq], end = p.batch.cu_seqlens_q[seq + 1];
  const int64_t slot = p.batch.state_slots[seq];
  if (begin >= end || slot < 0 || slot >= p.batch.num_slots) return;
  float* state = p.state + slot * p.stride_state_slot + channel;  // [width - 1], num_channels apart
  float weight[kWidth], input[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) weight[j] = p.weight[j * p.num_channels + channel];
  const bool first = p.batch.seq_lens[seq] == end - begin;
  input[0] = 0.0f;
#pragma unroll
  for (int j = 1; j < kWidth; ++j) input[j] = first ? 0.0f : state[(j - 1) * p.num_channels];
  const float bias = p.bias == nullptr ? 0.0f : p.bias[channel];
  const T* x = static_cast<const T*>(p.x) + channel;
  const T* gate_in = static_cast<const T*>(p.gate_in);
  const T* gate_out = static_cast<const T*>(p.gate_out);
  T* out = static_cast<T*>(p.out) + channel;
  for (int64_t token = begin; token < end; ++token) {
#pragma unroll
    for (int j = 0; j < kWidth - 1; ++j) input[j] = input[j + 1];
    input[kWidth - 1] = to_float(x[token * p.stride_x_token]);
    if (gate_in != nullptr) {
      input[kWidth - 1] *= to_float(gate_in[token * p.stride_gate_in_token + channel]);
    }
    float y = bias;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) y = fmaf(weight[j], input[j], y);
    if (p.silu) y *= sigmoid(y);
    if (gate_out != nullptr) {
      y *= to_float(gate_out[token * p.stride_gate_out_token + channel]);
    }
    out[token * p.stride_out_token] = from_float<T>(y);
  }
#pragma unroll
  for (int j = 1; j < kWidth; ++j) state[(j - 1) * p.num_channels] = input[j];
}

/// Blocks take 128 channels of a sequence, with the stride of the grid.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    causal_conv_kernel(const __grid_constant__ CausalConvParams p, int64_t blocks_per_seq) {
  wait_for_stream();
  for (int64_t block = blockIdx.x; block < p.batch.batch_size * blocks_per_seq;
       block += gridDim.x) {
    const int64_t seq = block / blocks_per_seq;
    const int64_t channel = (block - seq * blocks_per_seq) * kThreads + threadIdx.x;
    if (channel < p.num_channels) convolve<T, kWidth>(p, seq, channel);
  }
}

}  // namespace

void causal_conv(const CausalConvParams& p, int device, Stream stream) {
  const int64_t blocks_per_seq = (p.num_channels + kThreads - 1) / kThreads;
  const int64_t blocks = p.batch.batch_size * blocks_per_seq;
  if (blocks == 0) return;
  const Launch at{
      .op = "causal_conv",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(kThreads),
      .begins_early = true,
  };
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_int<2, 3, 4>(p.width, [&]<int kWidth>() {
      launch(at, causal_conv_kernel<T, kWidth>, p, blocks_per_seq);
    });
  });
}

}  // namespace lampo::cuda
