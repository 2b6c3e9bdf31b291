// SPDX-License-Identifier: Apache-2.0
// out[t] = table[token_ids[t]], or out[t] += it, from a dense table or from one row of a strip of a
// packed one (common/formats/formats.h). The twin of cpu/elementwise/embedding.cpp, bit for bit. A
// token id outside [0, vocab_size) gives a row of zeros.
//
// Dense: a thread takes 16 bytes of a row of out. Packed: a thread takes two times 4 outputs, 16
// from each other, from the words of each plane that hold their codes (strip.cuh). A block takes up
// to 256 neighbouring vectors, or parts, of one row (row_layout.h). Rows of out (or of a dense
// table) not aligned to 16 bytes are accessed element by element.
//
// Bytes: a row of the table and of out per token: a small part of a step; one token is bound by
// latency. A word of a strip costs a sector of 32 bytes: 8 times the row, 18 KB with 4-bit codes at
// hidden_size 4096.
//
// Limits: none on shapes. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and
// run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/device/row_part.cuh"
#include "cuda/device/strip.cuh"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/row_layout.h"

namespace lampo::cuda {
namespace {

/// Row of the table for a token; -1: none.
__device__ inline int64_t row_of(const EmbeddingParams& p, int64_t token) {
  const int64_t id = p.id_dtype == DType::kI64 ? static_cast<const int64_t*>(p.token_ids)[token]
                                               : static_cast<const int32_t*>(p.token_ids)[token];
  return id >= 0 && id < p.vocab_size ? id : -1;
}

/// Blocks take vectors row by row, with the stride of the grid.
template <class Out, class T, bool kAligned>
__global__ void __launch_bounds__(256)
    embedding_kernel(const __grid_constant__ EmbeddingParams p, int64_t blocks_per_row) {
  wait_for_stream();
  constexpr int N = kPerVector<Out>;
  for (int64_t block = blockIdx.x; block < p.num_tokens * blocks_per_row; block += gridDim.x) {
    const int64_t token = block / blocks_per_row;
    const int64_t column = ((block - token * blocks_per_row) * blockDim.x + threadIdx.x) * N;
    const int64_t row = row_of(p, token);
    Vector<T, N> part = {};
    if (row >= 0) {
      const T* from = static_cast<const T*>(p.table) + row * p.stride_table_row;  // [hidden_size]
      part = load_part<kAligned, N>(from, column, p.hidden_size);
    }
    Out* out = static_cast<Out*>(p.out) + token * p.stride_out_token;  // [hidden_size]
    if (p.accumulate) {
      const auto value = to_floats(part);
      auto sum = to_floats(load_part<kAligned, N>(out, column, p.hidden_size));
#pragma unroll
      for (int i = 0; i < N; ++i) sum.value[i] += value.value[i];
      store_part<kAligned>(out, column, p.hidden_size, from_floats<Out>(sum));
    } else if constexpr (std::is_same_v<Out, T>) {
      store_part<kAligned>(out, column, p.hidden_size, part);
    } else {
      store_part<kAligned>(out, column, p.hidden_size, from_floats<Out>(to_floats(part)));
    }
  }
}

template <class Out>
__device__ inline void store_four(Out* to, Vector<float, 4> values, bool aligned, bool accumulate) {
  if (accumulate) {
#pragma unroll
    for (int i = 0; i < 4; ++i) values.value[i] += to_float(to[i]);
  }
  const auto rounded = from_floats<Out>(values);
  if (aligned) {
    store_vector(to, rounded);
  } else {
    store_elements(to, rounded, 4);
  }
}

/// Threads of a group of a packed row.
constexpr int kGroupThreads = kGroupSize / 8;

/// As embedding_kernel, by parts of a packed table's groups.
template <class Out>
__global__ void __launch_bounds__(256)
    embedding_packed_kernel(const __grid_constant__ EmbeddingParams p, int64_t strip_bytes,
                            int64_t blocks_per_row, bool aligned) {
  wait_for_stream();
  const int64_t groups = p.hidden_size / kGroupSize;
  for (int64_t block = blockIdx.x; block < p.num_tokens * blocks_per_row; block += gridDim.x) {
    const int64_t token = block / blocks_per_row;
    const int64_t part = (block - token * blocks_per_row) * blockDim.x + threadIdx.x;
    const int64_t group = part / kGroupThreads;
    const int t = static_cast<int>(part % kGroupThreads);
    if (group >= groups) continue;
    const int64_t row = row_of(p, token);
    Vector<float, 4> values[2] = {};
    if (row >= 0) {
      const uint8_t* strip = static_cast<const uint8_t*>(p.table) + row / kStripRows * strip_bytes;
      switch_format(WeightFormats{}, p.format, [&]<class Format>() {
        read_weights<Format>(values, group_at<Format>(strip, group), row % kStripRows, t);
      });
    }
    Out* out = static_cast<Out*>(p.out) + token * p.stride_out_token + group * kGroupSize;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      store_four(out + 16 * h + 4 * t, values[h], aligned, p.accumulate);
    }
  }
}

Launch launch_of(const EmbeddingParams& p, const ElementLayout& layout, int device, Stream stream) {
  const int64_t blocks = p.num_tokens * layout.blocks_per_row;
  return {
      .op = "embedding",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(layout.threads),
      .begins_early = true,
  };
}

template <class Out>
void run_packed(const EmbeddingParams& p, int device, Stream stream) {
  const int64_t parts = p.hidden_size / kGroupSize * kGroupThreads;
  const ElementLayout layout = choose_element_layout(parts, kVectorBytes);
  launch(launch_of(p, layout, device, stream), embedding_packed_kernel<Out>, p,
         strip_layout(p.format, p.hidden_size).strip_bytes, layout.blocks_per_row,
         rows_aligned(p.out, p.stride_out_token, sizeof(Out)));
}

template <class Out, class T>
void run(const EmbeddingParams& p, int device, Stream stream) {
  const ElementLayout layout = choose_element_layout(p.hidden_size, sizeof(Out));
  const Launch at = launch_of(p, layout, device, stream);
  const bool aligned = p.hidden_size % kPerVector<Out> == 0 &&
                       rows_aligned(p.table, p.stride_table_row, sizeof(T)) &&
                       rows_aligned(p.out, p.stride_out_token, sizeof(Out));
  if (aligned) {
    launch(at, embedding_kernel<Out, T, true>, p, layout.blocks_per_row);
  } else {
    launch(at, embedding_kernel<Out, T, false>, p, layout.blocks_per_row);
  }
}

}  // namespace

void embedding(const EmbeddingParams& p, int device, Stream stream) {
  if (p.num_tokens == 0 || p.hidden_size == 0) return;
  dispatch_dtype<float, BF16>(p.dtype, [&]<class Out>() {
    if (p.packed) return run_packed<Out>(p, device, stream);
    dispatch_dtype<float, BF16, F16>(p.table_dtype,
                                     [&]<class T>() { run<Out, T>(p, device, stream); });
  });
}

}  // namespace lampo::cuda
