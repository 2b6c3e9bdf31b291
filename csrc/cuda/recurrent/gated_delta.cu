// SPDX-License-Identifier: Apache-2.0
// The gated delta rule, token by token, with a state S [key_dim, value_dim] per value head:
//   S <- e^g S;  d = beta (v - S^T k);  S <- S + k d^T;  o = S^T q
//   g = decay * softplus(a + dt_bias);  beta = sigmoid(b)
// with q and k normed to length 1 and q times scale; and, with a gate,
// out = norm_weight * o / sqrt(mean(o^2) + eps) * silu(gate). The twin of
// cpu/recurrent/gated_delta.cpp.
//
// A block passes all new tokens of a sequence in one value head; a thread has a column of S, which
// stays in global memory, in cache: no other thread touches it. q and k of a token are in shared
// memory. The norms of q, k and o are sums over the block. Every sum has one order, so the split
// into calls does not change a bit.
//
// Bytes: q, k, v, out once, S twice per call; FLOPs: 7 key_dim value_dim per token and head. A
// decoding step is bound by the memory of S; a prompt by the latency of a token, some 3 key_dim
// dependent accesses to cache. Not tried: S in registers, strips of columns over several blocks,
// chunks by matrix products (their bits would depend on the split).
//
// Limits: key_dim and value_dim up to 256. A sequence without new tokens, or with a slot out of
// range, is skipped. Not run on a GPU yet: run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/block.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/runtime/launch.h"

namespace lampo::cuda {
namespace {

constexpr int kThreads = kMaxGatedDeltaDim;  // a column each
constexpr float kNormEps = 1e-6f;

struct SharedStorage {
  float q[kMaxGatedDeltaDim];
  float k[kMaxGatedDeltaDim];
  BlockSumStorage q_sum, k_sum, o_sum;
};

/// log(1 + e^x): max(x, 0) + log(1 + e^-|x|), the logarithm by the series of 2 atanh(y / (2 + y)).
__device__ inline float softplus(float x) {
  const float y = expf(-fabsf(x));
  const float z = y / (2.0f + y), square = z * z;
  float series = 1.0f / 15.0f;
#pragma unroll
  for (int odd = 13; odd >= 1; odd -= 2) {
    series = fmaf(series, square, 1.0f / static_cast<float>(odd));
  }
  return fmaxf(x, 0.0f) + 2.0f * z * series;
}

/// All new tokens of a sequence in one value head.
template <class T>
__device__ inline void run_head(const GatedDeltaParams& p, int64_t seq, int64_t head) {
  const int64_t begin = p.batch.cu_seqlens_q[seq], end = p.batch.cu_seqlens_q[seq + 1];
  const int64_t slot = p.batch.state_slots[seq];
  if (begin >= end || slot < 0 || slot >= p.batch.num_slots) return;
  auto& shared = shared_storage<SharedStorage>();
  const int thread = static_cast<int>(threadIdx.x), num_threads = static_cast<int>(blockDim.x);
  const int64_t key_dim = p.key_dim, value_dim = p.value_dim;
  const bool has_key = thread < key_dim, has_value = thread < value_dim;
  const int64_t key_head =
      p.tiled ? head % p.num_key_heads : head / (p.num_value_heads / p.num_key_heads);
  // [key_dim], value_dim apart.
  float* state = p.state + slot * p.stride_state_slot + head * key_dim * value_dim + thread;
  if (p.batch.seq_lens[seq] == end - begin && has_value) {
    for (int64_t row = 0; row < key_dim; ++row) state[row * value_dim] = 0.0f;
  }
  const T* q_row = static_cast<const T*>(p.q) + key_head * p.stride_q_head + thread;
  const T* k_row = static_cast<const T*>(p.k) + key_head * p.stride_k_head + thread;
  const T* v_row = static_cast<const T*>(p.v) + head * p.stride_v_head + thread;
  const T* a_row = static_cast<const T*>(p.a) + head;
  const T* b_row = static_cast<const T*>(p.b) + head;
  const T* gate_row = static_cast<const T*>(p.gate) + head * p.stride_gate_head + thread;
  T* out_row = static_cast<T*>(p.out) + head * p.stride_out_head + thread;
  for (int64_t token = begin; token < end; ++token) {
    const float q = has_key ? to_float(q_row[token * p.stride_q_token]) : 0.0f;
    const float k = has_key ? to_float(k_row[token * p.stride_k_token]) : 0.0f;
    const float v = has_value ? to_float(v_row[token * p.stride_v_token]) : 0.0f;
    const float q_squares = block_sum(q * q, thread, num_threads, shared.q_sum);
    const float k_squares = block_sum(k * k, thread, num_threads, shared.k_sum);
    if (has_key) {
      shared.q[thread] = q * (p.scale / sqrtf(q_squares + kNormEps));
      shared.k[thread] = k * (1.0f / sqrtf(k_squares + kNormEps));
    }
    const float dt = to_float(a_row[token * p.stride_a_token]) + p.dt_bias[head];
    const float g = p.decay[head] * softplus(dt);
    const float keep = expf(g > 0.0f ? 0.0f : g);
    const float beta = sigmoid(to_float(b_row[token * p.stride_b_token]));
    sync_block();
    float o = 0.0f;
    if (has_value) {
      float known = 0.0f;
      for (int64_t row = 0; row < key_dim; ++row) {
        known = fmaf(state[row * value_dim], shared.k[row], known);
      }
      const float delta = beta * (v - keep * known);
      for (int64_t row = 0; row < key_dim; ++row) {
        const float updated = fmaf(shared.k[row], delta, keep * state[row * value_dim]);
        state[row * value_dim] = updated;
        o = fmaf(updated, shared.q[row], o);
      }
    }
    if (p.gate != nullptr) {
      const float squares = block_sum(o * o, thread, num_threads, shared.o_sum);
      if (has_value) {
        const float z = to_float(gate_row[token * p.stride_gate_token]);
        const float scale = 1.0f / sqrtf(squares / static_cast<float>(value_dim) + p.eps);
        o = o * scale * p.norm_weight[thread] * (z * sigmoid(z));
      }
    }
    if (has_value) out_row[token * p.stride_out_token] = from_float<T>(o);
    sync_block();  // shared memory is free again
  }
}

/// Blocks take heads of sequences, with the stride of the grid.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gated_delta_kernel(const __grid_constant__ GatedDeltaParams p) {
  wait_for_stream();
  for (int64_t i = blockIdx.x; i < p.batch.batch_size * p.num_value_heads; i += gridDim.x) {
    run_head<T>(p, i / p.num_value_heads, i % p.num_value_heads);
  }
}

}  // namespace

void gated_delta(const GatedDeltaParams& p, int device, Stream stream) {
  const int64_t blocks = p.batch.batch_size * p.num_value_heads;
  if (blocks == 0) return;
  const int64_t columns = p.key_dim > p.value_dim ? p.key_dim : p.value_dim;
  const int64_t warps = (columns + kWarpSize - 1) / kWarpSize;
  const Launch at{
      .op = "gated_delta",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(static_cast<unsigned>(warps * kWarpSize)),
      .shared_bytes = sizeof(SharedStorage),
      .begins_early = true,
  };
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() { launch(at, gated_delta_kernel<T>, p); });
}

}  // namespace lampo::cuda
