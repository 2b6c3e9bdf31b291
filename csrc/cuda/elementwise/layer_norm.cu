// SPDX-License-Identifier: Apache-2.0
// out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, after residual += x if there is one.
// The twin of cpu/elementwise/layer_norm.cpp: f32, the variance of centred values (no
// cancellation), which also correct the mean.
//
// Rows are divided among threads as in rms_norm.cu (row_layout.h: by the row's length alone, so the
// bits do not depend on the batch): a warp or a block per row, with its vectors in registers over
// both sums; rows of more than 2048 vectors are read three times, twice from cache.
//
// Bytes per element: 2 sizes of T (x, out), 4 with a residual; weight and bias stay in cache. About
// 8 FLOPs per element: memory-bound. At 4.3 TB/s (an H200's measured copy rate), bfloat16,
// hidden_size 4096: 4096 rows  67 MB  16 us; with residual 134 MB 31 us. One row is bound by
// latency.
//
// Limits: none on shapes. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and
// run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/block.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/device/row_part.cuh"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/row_layout.h"

namespace lampo::cuda {
namespace {

struct SharedStorage {
  BlockSumStorage sums, drifts, squares;
};

/// Sum over all threads of a row; a row of one warp needs no barrier.
__device__ inline float row_sum(float value, BlockSumStorage& storage) {
  const int num_threads = static_cast<int>(blockDim.x);
  if (num_threads == kWarpSize) return warp_sum(value);
  return block_sum(value, static_cast<int>(threadIdx.x), num_threads, storage);
}

template <class T, int N>
__device__ inline float add_values(const Vector<T, N>& part, float sum) {
  const auto values = to_floats(part);
#pragma unroll
  for (int i = 0; i < N; ++i) sum += values.value[i];
  return sum;
}

/// Sums of a thread's values around an estimate of the row's mean.
struct Centred {
  float drift = 0.0f, squares = 0.0f;

  template <class T, int N>
  __device__ void add(const Vector<T, N>& part, float estimate, int64_t count) {
    const auto values = to_floats(part);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i >= count) continue;  // past the row's end
      const float centred = values.value[i] - estimate;
      drift += centred;
      squares = fmaf(centred, centred, squares);
    }
  }
};

struct Normalizer {
  float estimate, drift, scale;

  template <class T, class W, int N>
  __device__ Vector<T, N> operator()(const Vector<T, N>& part, const Vector<W, N>& weight,
                                     const Vector<W, N>& bias) const {
    auto values = to_floats(part);
    const auto weights = to_floats(weight), shifts = to_floats(bias);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float normed = (values.value[i] - estimate - drift) * scale;
      values.value[i] = fmaf(normed, weights.value[i], shifts.value[i]);
    }
    return from_floats<T>(values);
  }
};

__device__ inline Normalizer normalizer(const Centred& mine, float estimate,
                                        const LayerNormParams& p) {
  auto& shared = shared_storage<SharedStorage>();
  const auto size = static_cast<float>(p.hidden_size);
  const float drift = row_sum(mine.drift, shared.drifts) / size;
  const float variance = row_sum(mine.squares, shared.squares) / size - drift * drift;
  return {estimate, drift, 1.0f / sqrtf(variance + p.eps)};
}

/// Threads per block: 1 and 4 rounds occur only with a warp per row and may use more registers.
template <int kRounds>
inline constexpr int kMaxThreads = kRounds == 1 || kRounds == 4 ? 32 * kWarpRowsPerBlock : 1024;

/// Block (threads_per_row, rows_per_block); kRounds as RowLayout::rounds.
template <class T, class W, bool kAligned, int kRounds>
__global__ void __launch_bounds__(kMaxThreads<kRounds>)
    layer_norm_kernel(const __grid_constant__ LayerNormParams p) {
  wait_for_stream();
  constexpr int N = kPerVector<T>;
  const int64_t size = p.hidden_size;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * N;
  const int64_t step = static_cast<int64_t>(blockDim.x) * N;
  const W* weight = static_cast<const W*>(p.weight);  // [hidden_size]
  const W* bias = static_cast<const W*>(p.bias);      // [hidden_size] or null
  const auto load_bias = [&](int64_t begin) {
    return bias != nullptr ? load_part<kAligned, N>(bias, begin, size) : Vector<W, N>{};
  };
  auto& shared = shared_storage<SharedStorage>();

  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
       row < p.num_tokens; row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const T* x = static_cast<const T*>(p.x) + row * p.stride_x_token;  // [hidden_size]
    T* out = static_cast<T*>(p.out) + row * p.stride_out_token;        // [hidden_size]
    T* residual = p.residual == nullptr
                      ? nullptr
                      : static_cast<T*>(p.residual) + row * p.stride_residual_token;
    float sum = 0.0f;
    Centred centred;
    if constexpr (kRounds > 0) {
      Vector<T, N> part[kRounds];
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        part[i] = load_part<kAligned, N>(x, first + i * step, size);
      }
      if (residual != nullptr) {
        // Loads precede the first store: the compiler must assume that rows overlap.
        Vector<T, N> before[kRounds];
#pragma unroll
        for (int i = 0; i < kRounds; ++i) {
          before[i] = load_part<kAligned, N>(residual, first + i * step, size);
        }
#pragma unroll
        for (int i = 0; i < kRounds; ++i) {
          part[i] = add_parts(part[i], before[i]);
          store_part<kAligned>(residual, first + i * step, size, part[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kRounds; ++i) sum = add_values(part[i], sum);
      const float estimate = row_sum(sum, shared.sums) / static_cast<float>(size);
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        centred.add(part[i], estimate, size - (first + i * step));
      }
      const Normalizer norm = normalizer(centred, estimate, p);
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        const int64_t begin = first + i * step;
        store_part<kAligned>(
            out, begin, size,
            norm(part[i], load_part<kAligned, N>(weight, begin, size), load_bias(begin)));
      }
    } else {
      for (int64_t begin = first; begin < size; begin += step) {
        auto part = load_part<kAligned, N>(x, begin, size);
        if (residual != nullptr) {
          part = add_parts(part, load_part<kAligned, N>(residual, begin, size));
          store_part<kAligned>(residual, begin, size, part);
        }
        sum = add_values(part, sum);
      }
      const T* source = residual != nullptr ? residual : x;  // a thread rereads its own writes
      const float estimate = row_sum(sum, shared.sums) / static_cast<float>(size);
      for (int64_t begin = first; begin < size; begin += step) {
        centred.add(load_part<kAligned, N>(source, begin, size), estimate, size - begin);
      }
      const Normalizer norm = normalizer(centred, estimate, p);
      for (int64_t begin = first; begin < size; begin += step) {
        const auto part = load_part<kAligned, N>(source, begin, size);
        const auto weights = load_part<kAligned, N>(weight, begin, size);
        store_part<kAligned>(out, begin, size, norm(part, weights, load_bias(begin)));
      }
    }
    if (blockDim.x > kWarpSize) sync_block();  // the next row uses the same shared memory
  }
}

template <class T, class W>
bool all_aligned(const LayerNormParams& p) {
  constexpr int kSize = sizeof(T);
  return p.hidden_size % kPerVector<T> == 0 && rows_aligned(p.x, p.stride_x_token, kSize) &&
         rows_aligned(p.out, p.stride_out_token, kSize) && rows_aligned(p.weight, 0, sizeof(W)) &&
         rows_aligned(p.bias, 0, sizeof(W)) &&
         (p.residual == nullptr || rows_aligned(p.residual, p.stride_residual_token, kSize));
}

template <class T, class W>
void run(const LayerNormParams& p, int device, Stream stream) {
  const RowLayout layout = choose_row_layout(p.hidden_size, sizeof(T));
  const int64_t blocks = (p.num_tokens + layout.rows_per_block - 1) / layout.rows_per_block;
  const Launch at{
      .op = "layer_norm",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(layout.threads_per_row, layout.rows_per_block),
      .shared_bytes = sizeof(SharedStorage),
      .begins_early = true,
  };
  if (!all_aligned<T, W>(p)) return launch(at, layer_norm_kernel<T, W, false, 0>, p);
  dispatch_int<0, 1, 2, 4>(
      layout.rounds, [&]<int kRounds>() { launch(at, layer_norm_kernel<T, W, true, kRounds>, p); });
}

}  // namespace

void layer_norm(const LayerNormParams& p, int device, Stream stream) {
  if (p.num_tokens == 0) return;
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_dtype<float, BF16>(p.weight_dtype, [&]<class W>() {
      if constexpr (std::is_same_v<W, float> || std::is_same_v<W, T>) run<T, W>(p, device, stream);
    });
  });
}

}  // namespace lampo::cuda
