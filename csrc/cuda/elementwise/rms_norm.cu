// SPDX-License-Identifier: Apache-2.0
// out = x * weight / sqrt(mean(x^2) + eps), after residual += x if there is one.
// The twin of cpu/elementwise/rms_norm.cpp: sums in f32, the residual rounded to T before it is
// normed.
//
// A row belongs to a warp (up to 128 vectors of 16 bytes; four rows per block) or to a block. A
// thread keeps its vectors in registers until the sum is known; the weight is loaded before the
// sum, so a row waits for memory once. Rows of more than 2048 vectors are read again, from cache.
// row_layout.h chooses by the row's length alone: the sum's order and bits do not depend on the
// batch. Rows not aligned to 16 bytes are read element by element, twice, in the same order.
//
// Bytes per element: 2 sizes of T (x, out), 4 with a residual; the weight stays in cache. About 4
// FLOPs per element: memory-bound. At 4.3 TB/s (an H200's measured copy rate), bfloat16,
// hidden_size 4096:  4096 rows  67 MB  16 us;  with residual  134 MB  31 us.
// One row (16 KB, 33 KB with residual) is bound by latency: launch, one trip to memory, a barrier.
//
// Limits: none on shapes. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and
// run on the CPU (tests/cuda_on_cpu/).
// Not tried: several rows per block with the weight in registers, which would halve the reads from
// L2; programmatic dependent launch.
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
  BlockSumStorage sum;
};

template <class T>
__device__ inline float add_squares(const Vector<T, kPerVector<T>>& part, float squares) {
  const auto values = to_floats(part);
#pragma unroll
  for (int i = 0; i < kPerVector<T>; ++i) squares = fmaf(values.value[i], values.value[i], squares);
  return squares;
}

template <class T, class W>
__device__ inline Vector<T, kPerVector<T>> scale_part(const Vector<T, kPerVector<T>>& part,
                                                      const Vector<W, kPerVector<T>>& weight,
                                                      float scale) {
  auto values = to_floats(part);
  const auto weights = to_floats(weight);
#pragma unroll
  for (int i = 0; i < kPerVector<T>; ++i) {
    values.value[i] = values.value[i] * scale * weights.value[i];
  }
  return from_floats<T>(values);
}

/// Scale of a row from its sum of squares. All threads of the row call it; one warp needs no
/// barrier.
__device__ inline float scale_of(float squares, const RmsNormParams& p) {
  const int thread = static_cast<int>(threadIdx.x);
  const int num_threads = static_cast<int>(blockDim.x);
  const float sum = num_threads == kWarpSize ? warp_sum(squares)
                                             : block_sum(squares, thread, num_threads,
                                                         shared_storage<SharedStorage>().sum);
  return 1.0f / sqrtf(sum / static_cast<float>(p.hidden_size) + p.eps);
}

/// Threads per block: 1 and 4 rounds occur only with a warp per row and may use more registers.
template <int kRounds>
inline constexpr int kMaxThreads = kRounds == 1 || kRounds == 4 ? 32 * kWarpRowsPerBlock : 1024;

/// Block (threads_per_row, rows_per_block); kRounds as RowLayout::rounds.
template <class T, class W, bool kAligned, int kRounds>
__global__ void __launch_bounds__(kMaxThreads<kRounds>)
    rms_norm_kernel(const __grid_constant__ RmsNormParams p) {
  wait_for_stream();
  const int64_t size = p.hidden_size;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kPerVector<T>;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kPerVector<T>;
  const W* weight = static_cast<const W*>(p.weight);  // [hidden_size]

  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
       row < p.num_tokens; row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const T* x = static_cast<const T*>(p.x) + row * p.stride_x_token;  // [hidden_size]
    T* out = static_cast<T*>(p.out) + row * p.stride_out_token;        // [hidden_size]
    T* residual = p.residual == nullptr
                      ? nullptr
                      : static_cast<T*>(p.residual) + row * p.stride_residual_token;
    float squares = 0.0f;
    if constexpr (kRounds > 0) {
      Vector<T, kPerVector<T>> part[kRounds];
      Vector<W, kPerVector<T>> weights[kRounds];
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        part[i] = load_part<kAligned, kPerVector<T>>(x, first + i * step, size);
        weights[i] = load_part<kAligned, kPerVector<T>>(weight, first + i * step, size);
      }
      if (residual != nullptr) {
        // Loads precede the first store: the compiler must assume that rows overlap.
        Vector<T, kPerVector<T>> before[kRounds];
#pragma unroll
        for (int i = 0; i < kRounds; ++i) {
          before[i] = load_part<kAligned, kPerVector<T>>(residual, first + i * step, size);
        }
#pragma unroll
        for (int i = 0; i < kRounds; ++i) {
          part[i] = add_parts(part[i], before[i]);
          store_part<kAligned>(residual, first + i * step, size, part[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kRounds; ++i) squares = add_squares<T>(part[i], squares);
      const float scale = scale_of(squares, p);
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        store_part<kAligned>(out, first + i * step, size,
                             scale_part<T, W>(part[i], weights[i], scale));
      }
    } else {
      for (int64_t begin = first; begin < size; begin += step) {
        auto part = load_part<kAligned, kPerVector<T>>(x, begin, size);
        if (residual != nullptr) {
          part = add_parts(part, load_part<kAligned, kPerVector<T>>(residual, begin, size));
          store_part<kAligned>(residual, begin, size, part);
        }
        squares = add_squares<T>(part, squares);
      }
      const float scale = scale_of(squares, p);
      const T* source = residual != nullptr ? residual : x;  // a thread rereads its own writes
      for (int64_t begin = first; begin < size; begin += step) {
        const auto part = load_part<kAligned, kPerVector<T>>(source, begin, size);
        const auto weights = load_part<kAligned, kPerVector<T>>(weight, begin, size);
        store_part<kAligned>(out, begin, size, scale_part<T, W>(part, weights, scale));
      }
    }
    if (blockDim.x > kWarpSize) sync_block();  // the next row uses the same shared memory
  }
}

template <class T, class W>
bool all_aligned(const RmsNormParams& p) {
  constexpr int kSize = sizeof(T);
  return p.hidden_size % kPerVector<T> == 0 && rows_aligned(p.x, p.stride_x_token, kSize) &&
         rows_aligned(p.out, p.stride_out_token, kSize) && rows_aligned(p.weight, 0, sizeof(W)) &&
         (p.residual == nullptr || rows_aligned(p.residual, p.stride_residual_token, kSize));
}

template <class T, class W>
void run(const RmsNormParams& p, int device, Stream stream) {
  const RowLayout layout = choose_row_layout(p.hidden_size, sizeof(T));
  const int64_t blocks = (p.num_tokens + layout.rows_per_block - 1) / layout.rows_per_block;
  const Launch at{
      .op = "rms_norm",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(layout.threads_per_row, layout.rows_per_block),
      .shared_bytes = sizeof(SharedStorage),
      .begins_early = true,
  };
  if (!all_aligned<T, W>(p)) return launch(at, rms_norm_kernel<T, W, false, 0>, p);
  dispatch_int<0, 1, 2, 4>(
      layout.rounds, [&]<int kRounds>() { launch(at, rms_norm_kernel<T, W, true, kRounds>, p); });
}

}  // namespace

void rms_norm(const RmsNormParams& p, int device, Stream stream) {
  if (p.num_tokens == 0) return;
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_dtype<float, BF16>(p.weight_dtype, [&]<class W>() {
      if constexpr (std::is_same_v<W, float> || std::is_same_v<W, T>) run<T, W>(p, device, stream);
    });
  });
}

}  // namespace lampo::cuda
