// SPDX-License-Identifier: Apache-2.0
// out = silu(gate) * up with silu(x) = x / (1 + e^-x), for the gated feed-forward (SwiGLU).
// The twin of cpu/kernels/activation.cpp.
//
// A thread takes one vector of 16 bytes of a row: of gate, of up (`size` columns further), of out.
// A block takes up to 256 neighbouring vectors of one row (row_layout.h), so one row of decode is
// spread over several multiprocessors. Rows that are not aligned to 16 bytes go element by element.
//
// Bytes: 3 values of T per output. About 20 instructions per output, two of them MUFU (exponential,
// reciprocal): at 4.3 TB/s (an H200's measured copy rate) and bfloat16 a multiprocessor must make
// 3.1 outputs a cycle of the 6 it could; memory-bound, but not by far, hence no exact division.
// Expected, bfloat16, size 14336:  4096 rows  352 MB  82 us;  one row  86 KB  latency.
//
// Limits: none on shapes. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and
// run on the CPU (tests/cuda_on_cpu/).
#include "common/check.h"
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/convert.cuh"
#include "cuda/device/math.cuh"
#include "cuda/launch.h"
#include "cuda/row_layout.h"

namespace lampo::cuda {
namespace {

template <class T>
inline constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
__device__ inline Vector<T, kPerVector<T>> silu_mul_part(const Vector<T, kPerVector<T>>& gate,
                                                         const Vector<T, kPerVector<T>>& up) {
  auto values = to_floats(gate);
  const auto factors = to_floats(up);
#pragma unroll
  for (int i = 0; i < kPerVector<T>; ++i) {
    values.value[i] = values.value[i] * sigmoid(values.value[i]) * factors.value[i];
  }
  return from_floats<T>(values);
}

/// Blocks of one row after the other; they stride over what the grid cannot hold.
template <class T, bool kAligned>
__global__ void __launch_bounds__(256)
    silu_mul_kernel(const __grid_constant__ ActivationParams p, int64_t blocks_per_row) {
  for (int64_t block = blockIdx.x; block < p.num_tokens * blocks_per_row; block += gridDim.x) {
    const int64_t row = block / blocks_per_row;
    const int64_t vector = (block - row * blocks_per_row) * blockDim.x + threadIdx.x;
    const int64_t column = vector * kPerVector<T>;
    if (column >= p.size) continue;
    const T* gate = static_cast<const T*>(p.x) + row * p.stride_x_token + column;  // [2 * size]
    T* out = static_cast<T*>(p.out) + row * p.stride_out_token + column;           // [size]
    if constexpr (kAligned) {
      store_vector(out, silu_mul_part<T>(load_vector<T, kPerVector<T>>(gate),
                                         load_vector<T, kPerVector<T>>(gate + p.size)));
    } else {
      const int count = static_cast<int>(min(p.size - column, int64_t{kPerVector<T>}));
      store_elements(out,
                     silu_mul_part<T>(load_elements<T, kPerVector<T>>(gate, count),
                                      load_elements<T, kPerVector<T>>(gate + p.size, count)),
                     count);
    }
  }
}

template <class T>
void run(const ActivationParams& p, int device, Stream stream) {
  const ElementLayout layout = choose_element_layout(p.size, sizeof(T));
  const int64_t blocks = p.num_tokens * layout.blocks_per_row;
  const Launch at{
      .op = op_name(p),
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(layout.threads),
  };
  const bool aligned = p.size % kPerVector<T> == 0 &&
                       rows_aligned(p.x, p.stride_x_token, sizeof(T)) &&
                       rows_aligned(p.out, p.stride_out_token, sizeof(T));
  if (aligned) {
    launch(at, silu_mul_kernel<T, true>, p, layout.blocks_per_row);
  } else {
    launch(at, silu_mul_kernel<T, false>, p, layout.blocks_per_row);
  }
}

}  // namespace

void activation(const ActivationParams& p, int device, Stream stream) {
  if (p.activation != Activation::kSilu || !p.gated) {
    throw BackendError("gelu: has no CUDA kernel yet, use CPU tensors");
  }
  if (p.num_tokens == 0 || p.size == 0) return;
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() { run<T>(p, device, stream); });
}

}  // namespace lampo::cuda
