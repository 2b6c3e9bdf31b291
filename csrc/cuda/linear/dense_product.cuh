// SPDX-License-Identifier: Apache-2.0
// Products of x with dense weights by mma.sync in 16 bits (linear.cu), and how x lies in shared
// memory for them, which linear_fp8.cu shares.
#pragma once

#include "cuda/device/ptx/global_memory.cuh"
#include "cuda/device/ptx/matrix.cuh"
#include "cuda/linear/linear_block.cuh"

namespace lampo::cuda {

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

}  // namespace lampo::cuda
