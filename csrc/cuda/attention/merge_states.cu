// SPDX-License-Identifier: Apache-2.0
// out = sum_i e^(lse_i - lse) out_i with lse = log sum_i e^lse_i, over partial attention results.
// The twin of cpu/attention/merge_states.cpp.
//
// out_partial [num_splits, num_tokens, num_heads, head_dim], lse_partial [num_splits, num_tokens,
// num_heads]. A thread takes one vector of 16 bytes of a row (token, head), so every multiprocessor
// has work even for one token. It reads its row's lse twice, first for their maximum, so the loads
// of partials are independent. Sums are f32, in the order of the splits: the same bits in any
// batch.
// A split with lse -inf is not read. Rows not aligned to 16 bytes are read element by element.
//
// Bytes: the partials once. Memory-bound: 8 splits of 64 tokens, 32 heads of 128, to bfloat16:
// 34 MB, 8 us at 4.3 TB/s (an H200's measured copy rate). One token is bound by latency.
//
// Limits: none on shapes. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and
// run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/convert.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/row_layout.h"

namespace lampo::cuda {
namespace {

constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(float));
constexpr int kThreads = 128;

/// Threads take the vectors of all rows in order, with the stride of the grid.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    merge_states_kernel(const __grid_constant__ MergeStatesParams p, int64_t vectors_per_row) {
  wait_for_stream();
  const float minus_infinity = -__builtin_huge_valf();
  const int64_t num_vectors = p.num_tokens * p.num_heads * vectors_per_row;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t vector = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       vector < num_vectors; vector += step) {
    const int64_t row = vector / vectors_per_row;
    const int64_t column = (vector - row * vectors_per_row) * kPerVector;
    const int64_t token = row / p.num_heads;
    const int64_t head = row - token * p.num_heads;
    const int count = static_cast<int>(min(p.head_dim - column, int64_t{kPerVector}));
    const float* lses = p.lse_partial + token * p.stride_lse_partial_token + head;
    const float* partial = p.out_partial + token * p.stride_out_partial_token +
                           head * p.stride_out_partial_head + column;

    float largest = minus_infinity;
#pragma unroll 4
    for (int64_t split = 0; split < p.num_splits; ++split) {
      largest = fmaxf(largest, lses[split * p.stride_lse_partial_split]);
    }
    float sum = 0.0f;
    Vector<float, kPerVector> acc = {};
#pragma unroll 4
    for (int64_t split = 0; split < p.num_splits; ++split) {
      const float lse = lses[split * p.stride_lse_partial_split];
      if (lse == minus_infinity) continue;
      const float* from = partial + split * p.stride_out_partial_split;
      const float weight = expf(lse - largest);
      Vector<float, kPerVector> values;
      if constexpr (kAligned) {
        values = load_vector<float, kPerVector>(from);
      } else {
        values = load_elements<float, kPerVector>(from, count);
      }
      sum += weight;
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) {
        acc.value[i] = fmaf(weight, values.value[i], acc.value[i]);
      }
    }
    const float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) acc.value[i] *= scale;
    T* out =
        static_cast<T*>(p.out) + token * p.stride_out_token + head * p.stride_out_head + column;
    if constexpr (kAligned) {
      store_vector(out, from_floats<T>(acc));
    } else {
      store_elements(out, from_floats<T>(acc), count);
    }
    if (p.lse != nullptr && column == 0) {
      p.lse[token * p.stride_lse_token + head] = sum > 0.0f ? largest + logf(sum) : minus_infinity;
    }
  }
}

template <class T>
bool all_aligned(const MergeStatesParams& p) {
  constexpr int kF32 = sizeof(float), kSize = sizeof(T);
  return p.head_dim % kPerVector == 0 &&
         rows_aligned(p.out_partial, p.stride_out_partial_split, kF32) &&
         rows_aligned(p.out_partial, p.stride_out_partial_token, kF32) &&
         rows_aligned(p.out_partial, p.stride_out_partial_head, kF32) &&
         rows_aligned(p.out, p.stride_out_token, kSize) &&
         rows_aligned(p.out, p.stride_out_head, kSize);
}

template <class T>
void run(const MergeStatesParams& p, int device, Stream stream) {
  const int64_t vectors_per_row = (p.head_dim + kPerVector - 1) / kPerVector;
  const int64_t num_vectors = p.num_tokens * p.num_heads * vectors_per_row;
  const int64_t blocks = (num_vectors + kThreads - 1) / kThreads;
  const Launch at{
      .op = "merge_states",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(kThreads),
      .begins_early = true,
  };
  if (all_aligned<T>(p)) {
    launch(at, merge_states_kernel<T, true>, p, vectors_per_row);
  } else {
    launch(at, merge_states_kernel<T, false>, p, vectors_per_row);
  }
}

}  // namespace

void merge_states(const MergeStatesParams& p, int device, Stream stream) {
  if (p.num_tokens == 0 || p.num_heads == 0) return;
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() { run<T>(p, device, stream); });
}

}  // namespace lampo::cuda
