// SPDX-License-Identifier: Apache-2.0
// out = x * sigmoid(gate), per head: an output gate of attention. The twin of
// cpu/elementwise/sigmoid_mul.cpp.
//
// A thread takes one element, a block 256 neighbouring ones; out may be x.
//
// Bytes: 3 values of T per output: memory-bound. One row of decode is bound by latency.
//
// Limits: none on shapes. Not run on a GPU yet: run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/convert.cuh"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/runtime/launch.h"

namespace lampo::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_mul_kernel(const __grid_constant__ SigmoidMulParams p, int64_t count) {
  wait_for_stream();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += step) {
    const int64_t column = i % p.head_dim, row = i / p.head_dim;
    const int64_t head = row % p.num_heads, token = row / p.num_heads;
    const T x =
        static_cast<const T*>(p.x)[token * p.stride_x_token + head * p.stride_x_head + column];
    const T gate = static_cast<const T*>(
        p.gate)[token * p.stride_gate_token + head * p.stride_gate_head + column];
    static_cast<T*>(p.out)[token * p.stride_out_token + head * p.stride_out_head + column] =
        from_float<T>(to_float(x) * sigmoid(to_float(gate)));
  }
}

}  // namespace

void sigmoid_mul(const SigmoidMulParams& p, int device, Stream stream) {
  const int64_t count = p.num_tokens * p.num_heads * p.head_dim;
  if (count == 0) return;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  const Launch at{
      .op = "sigmoid_mul",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(kThreads),
      .begins_early = true,
  };
  dispatch_dtype<float, BF16>(p.dtype,
                              [&]<class T>() { launch(at, sigmoid_mul_kernel<T>, p, count); });
}

}  // namespace lampo::cuda
