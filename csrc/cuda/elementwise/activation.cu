// SPDX-License-Identifier: Apache-2.0
// out = act(gate) * up for the gated feed-forward (SwiGLU, GeGLU), or act(x) alone:
//   silu(x) = x / (1 + e^-x);  gelu(x) = x/2 (1 + erf(x / sqrt 2));
//   gelu_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
//   scale(x) = factor x;  soft_cap(x) = cap tanh(factor x), factor a part of 1 / cap
//   grow(x) = (1 + beta ln(1 + floor(position / length))) x
// The twin of cpu/elementwise/activation.cpp.
//
// A thread takes one vector of 16 bytes of a row: of gate, of up (`size` columns further), of out.
// A block takes up to 256 neighbouring vectors of one row (row_layout.h), so one row of decode is
// spread over several multiprocessors. Rows not aligned to 16 bytes are read element by element.
//
// Bytes: 3 values of T per output, 2 if not gated. silu: about 20 instructions per output, two
// of them MUFU (exponential, reciprocal): at 4.3 TB/s (an H200's measured copy rate) and bfloat16 a
// multiprocessor makes 3.1 outputs per cycle, of 6 possible ones; memory-bound by a small margin,
// hence no exact division. gelu's erf is some 25 instructions, tanh 20.
// Expected, bfloat16, size 14336:  4096 rows  352 MB  82 us;  one row  86 KB  latency.
//
// Limits: none on shapes. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and
// run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/device/row_part.cuh"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/row_layout.h"

namespace lampo::cuda {
namespace {

/// The factor of a row's elements, of those functions that have one.
template <Activation kActivation>
__device__ inline float row_factor(const ActivationParams& p, int64_t row) {
  if constexpr (kActivation == Activation::kGrow) {
    const int64_t position = p.positions[row] > 0 ? p.positions[row] : 0;
    return 1.0f + p.factor * logf(static_cast<float>(1 + position / p.length));
  } else {
    return p.factor;
  }
}

template <Activation kActivation>
__device__ inline float activate(const ActivationParams& p, float factor, float x) {
  if constexpr (kActivation == Activation::kSilu) {
    return x * sigmoid(x);
  } else if constexpr (kActivation == Activation::kGelu) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678f));
  } else if constexpr (kActivation == Activation::kScale || kActivation == Activation::kGrow) {
    return factor * x;
  } else if constexpr (kActivation == Activation::kSoftCap) {
    return p.soft_cap * tanhf(factor * x);
  } else {
    return 0.5f * x * (1.0f + tanhf(fmaf(x * x * x, 0.044715f, x) * 0.79788456f));
  }
}

/// Blocks take vectors row by row, with the stride of the grid.
template <class T, Activation kActivation, bool kAligned>
__global__ void __launch_bounds__(256)
    activation_kernel(const __grid_constant__ ActivationParams p, int64_t blocks_per_row) {
  wait_for_stream();
  constexpr int N = kPerVector<T>;
  for (int64_t block = blockIdx.x; block < p.num_tokens * blocks_per_row; block += gridDim.x) {
    const int64_t row = block / blocks_per_row;
    const int64_t column = ((block - row * blocks_per_row) * blockDim.x + threadIdx.x) * N;
    const T* x = static_cast<const T*>(p.x) + row * p.stride_x_token;  // [size or 2 * size]
    T* out = static_cast<T*>(p.out) + row * p.stride_out_token;        // [size]
    auto values = to_floats(load_part<kAligned, N>(x, column, p.size));
    const float factor = row_factor<kActivation>(p, row);
    Vector<T, N> up;
    if (p.gated) up = load_part<kAligned, N>(x + p.size, column, p.size);
#pragma unroll
    for (int i = 0; i < N; ++i) values.value[i] = activate<kActivation>(p, factor, values.value[i]);
    if (p.gated) {
      const auto factors = to_floats(up);
#pragma unroll
      for (int i = 0; i < N; ++i) values.value[i] *= factors.value[i];
    }
    store_part<kAligned>(out, column, p.size, from_floats<T>(values));
  }
}

template <class T, Activation kActivation>
void run(const ActivationParams& p, int device, Stream stream) {
  const ElementLayout layout = choose_element_layout(p.size, sizeof(T));
  const int64_t blocks = p.num_tokens * layout.blocks_per_row;
  const Launch at{
      .op = op_name(p),
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(layout.threads),
      .begins_early = true,
  };
  const bool aligned = p.size % kPerVector<T> == 0 &&
                       rows_aligned(p.x, p.stride_x_token, sizeof(T)) &&
                       rows_aligned(p.out, p.stride_out_token, sizeof(T));
  if (aligned) {
    launch(at, activation_kernel<T, kActivation, true>, p, layout.blocks_per_row);
  } else {
    launch(at, activation_kernel<T, kActivation, false>, p, layout.blocks_per_row);
  }
}

}  // namespace

void activation(const ActivationParams& p, int device, Stream stream) {
  if (p.num_tokens == 0 || p.size == 0) return;
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    switch (p.activation) {
      case Activation::kSilu:
        return run<T, Activation::kSilu>(p, device, stream);
      case Activation::kGelu:
        return run<T, Activation::kGelu>(p, device, stream);
      case Activation::kGeluTanh:
        return run<T, Activation::kGeluTanh>(p, device, stream);
      case Activation::kScale:
        return run<T, Activation::kScale>(p, device, stream);
      case Activation::kSoftCap:
        return run<T, Activation::kSoftCap>(p, device, stream);
      case Activation::kGrow:
        return run<T, Activation::kGrow>(p, device, stream);
    }
  });
}

}  // namespace lampo::cuda
