// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on dense weights (f32, bf16, f16), row-major as stored, with gate or
// residual. For small batches: the weight is read once per 16 tokens. The twin of
// cpu/linear/linear.cpp.
//
// A block keeps x, normed and rounded, in shared memory and multiplies strips of 16 weight rows by
// up to 16 tokens with mma.sync, one or two strips at a time (linear_tile.h). Its 16 warps divide a
// strip along the inputs and add their sums in shared memory, in order. mma.sync serves a single
// token too: it hides behind memory, and a token's bits depend neither on the batch nor on the
// number of multiprocessors. No workspace, no atomics.
//
// mma.sync allows any order of inputs, so a lane's fragments of two products are 16 neighbouring
// bytes of two rows: from global memory to registers, past L1, with 8 loads per lane in flight,
// also from one group to the next. That is 64 KB per multiprocessor (an H200 needs 25 to 40 KB). x
// in shared memory has the same order.
//
// Types: x and the weight are multiplied unchanged if both are bfloat16 or both float16. With a
// bfloat16 weight, another x is rounded to the sum of two bfloat16, or with activation_bits 8 and
// float32 to one, as on the CPU. Otherwise both are split into sums of bfloat16 (three for a float,
// two for a float16); products are added down to 2^-27 of the largest: as exact as float32, for 5
// or 6 times the multiplications. An infinity that is split becomes NaN. Weights with rows not
// aligned to 16 bytes are read element by element.
//
// Bytes: the weight once, x and out once per block, from L2. FLOPs: 2 tokens per weight. On an H200
// (4.3 TB/s copy, about 780 TFLOP/s), bfloat16, Llama-3.1-8B's gate and up [28672, 4096]:
//   1 token    235 MB  55 us;  0.2 GFLOP  0.3 us
//   16 tokens  235 MB  55 us;  3.8 GFLOP  4.8 us
// and o [4096, 4096]: 34 MB, 7.8 us.
//
// More than 16 tokens of the weight's own 16-bit type, and more than 128 of 16 bits beside a packed
// weight, go to linear_tiles.cu; of other types they are launches of 16 each.
//
// Limits: none on shapes. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and
// run on the CPU (tests/cuda_on_cpu/).
// Not tried: x from a cluster's shared memory in place of slabs.
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/ptx/global_memory.cuh"
#include "cuda/device/ptx/matrix.cuh"
#include "cuda/linear/linear_block.cuh"
#include "cuda/linear/linear_launch.h"

namespace lampo::cuda {
namespace {

/// Two floats as sums of kPlanes bfloat16 each: 3 hold a float (below 3.39e38), 2 a float16.
template <int kPlanes>
__device__ inline void split_pair(float low, float high, uint32_t (&plane)[kPlanes]) {
#pragma unroll
  for (int i = 0; i < kPlanes; ++i) {
    plane[i] = pack_bf16(low, high);
    low -= float_from_bits(plane[i] << 16);
    high -= float_from_bits(plane[i] & 0xffff0000u);
  }
}

/// A lane's part of a chunk of a strip: inputs 8 t to 8 t + 7 of rows 2 g and 2 g + 1, as stored.
template <class W>
struct DensePiece {
  uint32_t row[2][sizeof(W) / 2][4];
};

/// Loads a lane's inputs of a row, zeros after the `left` that the row has.
template <class W, bool kAligned>
__device__ inline void load_part(uint32_t (&to)[sizeof(W) / 2][4], const W* from, int left) {
  if constexpr (kAligned) {  // parts are whole
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(W)) / 2; ++i) {
      if (left > 0) {
        load_once(to[i], from + i * 4);
      } else {
        to[i][0] = to[i][1] = to[i][2] = to[i][3] = 0;
      }
    }
  } else {
    const int count = max(min(left, kPerRead), 0);
    const auto part = load_elements<W, kPerRead>(from, count);
    memcpy(to, &part, sizeof(part));
  }
}

/// Number of 16-bit planes that add up to a weight.
template <class T, class W>
inline constexpr int kWeightPlanes = std::is_same_v<T, W>     ? 1
                                     : std::is_same_v<W, F16> ? 2
                                                              : 3;

/// Pair `i` (0..3) of a part, in planes of T.
template <class T, class W>
__device__ inline void weight_planes(const uint32_t (&part)[sizeof(W) / 2][4], int i,
                                     uint32_t (&plane)[kWeightPlanes<T, W>]) {
  if constexpr (std::is_same_v<T, W>) {
    plane[0] = part[0][i];
  } else if constexpr (std::is_same_v<W, F16>) {
    split_pair(widen_f16(part[0][i]), widen_f16(part[0][i] >> 16), plane);
  } else {
    split_pair(float_from_bits(part[i / 2][i % 2 * 2]), float_from_bits(part[i / 2][i % 2 * 2 + 1]),
               plane);
  }
}

/// Products of T, with weights of W and kPlanes planes of x.
template <class T, class W, int kPlanes, int kStrips, bool kAligned>
struct DenseProduct {
  using Piece = DensePiece<W>;
  static constexpr int kInFlight = dense_in_flight(sizeof(W));
  static constexpr int kNormedTogether = 4;

  const LinearParams& p;
  const LinearInput& x;
  const LinearMemory& memory;
  const LinearLane at = {};

  struct Source {
    const W* row[2];  // the lane's first input
    int left;         // inputs from there on
  };

  __device__ int chunk_bytes() const {
    return static_cast<int>(p.num_tokens) * kPlanes * kLinearChunk * 2;
  }

  /// A chunk of x: [planes][2][tokens][4] fragments, the inputs 8 t + 4 half ... 8 t + 4 half + 3.
  __device__ FragmentB* x_part(unsigned char* chunk, int plane, int half, int token, int t) const {
    const int num_tokens = static_cast<int>(p.num_tokens);
    return reinterpret_cast<FragmentB*>(chunk) + ((plane * 2 + half) * num_tokens + token) * 4 + t;
  }

  __device__ Source source(int64_t first_row, int chunk) const {
    const int64_t begin = int64_t{chunk} * kLinearChunk + kPerRead * at.t;
    Source source;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t row = min(first_row + 2 * at.g + i, p.out_features - 1);
      source.row[i] = static_cast<const W*>(p.weight) + row * p.stride_weight_row + begin;
    }
    source.left = static_cast<int>(p.in_features - begin);
    return source;
  }

  __device__ void prefetch(const Source& source, int i) const {
    const int begin = i * kLinearWarps * kLinearChunk;
    if (source.left <= begin) return;
    prefetch_to_l2(source.row[0] + begin);
    prefetch_to_l2(source.row[1] + begin);
  }

  __device__ Piece load(const Source& source, int i) const {
    const int begin = i * kLinearWarps * kLinearChunk;
    Piece piece;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      load_part<W, kAligned>(piece.row[j], source.row[j] + begin, source.left - begin);
    }
    return piece;
  }

  __device__ void stage(int chunk, int num_chunks) const {
    constexpr int kTogether = kPlanes == 1 ? 2 : 1;  // parts with loads in flight
    const int parts = num_chunks * 4, num_tokens = static_cast<int>(p.num_tokens);
    for (int first = static_cast<int>(threadIdx.x); first < num_tokens * parts;
         first += kTogether * kLinearThreads) {
      Vector<float, kPerRead> values[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const int i = first + k * kLinearThreads, token = i / parts;
        if (token >= num_tokens) break;
        values[k] = x.read(token, (int64_t{chunk} * 4 + i - token * parts) * kPerRead);
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const int i = first + k * kLinearThreads, token = i / parts;
        if (token >= num_tokens) break;
        store_part(values[k], i - token * parts, token);
      }
    }
  }

  __device__ void store_part(const Vector<float, kPerRead>& values, int part, int token) const {
    uint32_t pairs[4][kPlanes];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float low = values.value[2 * j], high = values.value[2 * j + 1];
      if (p.norm_weight != nullptr) {  // rounded as rms_norm stores them
        low = rounded(low, p.dtype), high = rounded(high, p.dtype);
      }
      if constexpr (std::is_same_v<T, F16>) {
        pairs[j][0] = pack_f16(low, high);
      } else {
        split_pair(low, high, pairs[j]);
      }
    }
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *x_part(memory.x + part / 4 * chunk_bytes(), plane, half, token,
                part % 4) = {{pairs[2 * half][plane], pairs[2 * half + 1][plane]}};
      }
    }
  }

  /// Order of inputs: columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of mma.sync are inputs 8 t ... 8 t +
  /// 3, in a second product 8 t + 4 ... 8 t + 7; its rows g and g + 8 are rows 2 g and 2 g + 1.
  __device__ void multiply(const Piece (&pieces)[kStrips], unsigned char* x_chunk,
                           FragmentC<float> (&sum)[kStrips][kTokenTiles]) const {
    constexpr int kW = kWeightPlanes<T, W>;
    const int num_tokens = static_cast<int>(p.num_tokens);
#pragma unroll
    for (int r = 0; r < kStrips; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t left[4][kW];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          weight_planes<T, W>(pieces[r].row[i % 2], half * 2 + i / 2, left[i]);
        }
#pragma unroll
        for (int tile = 0; tile < kTokenTiles; ++tile) {
          if (tile > 0 && num_tokens <= tile * 8) break;
          const int token = min(tile * 8 + at.g, num_tokens - 1);  // later columns are ignored
#pragma unroll
          for (int j = 0; j < kPlanes; ++j) {
            const FragmentB b = *x_part(x_chunk, j, half, token, at.t);
#pragma unroll
            for (int i = 0; i < kW && i + j <= 2; ++i) {
              const FragmentA a = {{left[0][i], left[1][i], left[2][i], left[3][i]}};
              multiply_add<T>(sum[r][tile], a, b);
            }
          }
        }
      }
    }
  }
};

template <class T, class W, int kPlanes, int kStrips, bool kAligned>
__global__ void __launch_bounds__(kLinearThreads)
    linear_kernel(const __grid_constant__ LinearParams p, const __grid_constant__ LinearTile tile,
                  bool x_aligned) {
  const LinearMemory memory(tile, p.num_tokens);
  const LinearInput x{p, memory.scale, x_aligned};
  const DenseProduct<T, W, kPlanes, kStrips, kAligned> product{p, x, memory};
  multiply_groups<kStrips>(p, tile, memory, product);
}

/// kPlanes: planes of x. W is multiplied as stored, or as planes of T.
template <class T, class W, int kPlanes, bool kAligned>
void run(const LinearParams& p, int device, Stream stream) {
  launch_linear(p, kPlanes * kLinearChunk * 2, dense_in_flight(sizeof(W)),
                linear_kernel<T, W, kPlanes, 1, kAligned>,
                linear_kernel<T, W, kPlanes, 2, kAligned>, device, stream);
}

}  // namespace

void linear(const LinearParams& p, int device, Stream stream) {
  if (p.num_tokens == 0 || p.out_features == 0) return;
  if (takes_tiles(p)) return linear_tiles(p, device, stream);
  if (p.packed) return linear_packed(p, device, stream);
  dispatch_dtype<float, BF16, F16>(p.weight_dtype, [&]<class W>() {
    constexpr int64_t kPerVector = kVectorBytes / sizeof(W);
    constexpr int kPlanes = std::is_same_v<W, BF16> ? 2 : 3;
    if (p.in_features % kPerRead != 0 || p.stride_weight_row % kPerVector != 0 ||
        reinterpret_cast<uintptr_t>(p.weight) % kVectorBytes != 0) {
      return run<BF16, W, kPlanes, false>(p, device, stream);
    }
    if constexpr (!std::is_same_v<W, float>) {
      const bool one_plane =
          p.dtype == kDTypeOf<W> ||
          (std::is_same_v<W, BF16> && p.dtype == DType::kF32 && p.activation_bits == 8);
      if (one_plane) return run<W, W, 1, true>(p, device, stream);
    }
    run<BF16, W, kPlanes, true>(p, device, stream);
  });
}

}  // namespace lampo::cuda
