// SPDX-License-Identifier: Apache-2.0
// Common parts of linear.cu, linear_packed.cu and linear_fp8.cu: the walk of a block's warps
// through its strips (linear_tile.h), the norm of x, and the epilogue.
#pragma once

#include "cuda/device/block.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/fragment.cuh"
#include "cuda/device/math.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/linear/linear_tile.h"
#include "params.h"

namespace lampo::cuda {

inline constexpr int kLinearThreads = kLinearWarps * kWarpSize;
/// Products of mma.sync, of 8 tokens, per strip.
inline constexpr int kTokenTiles = kLinearTokens / 8;
/// Elements of x per read of a thread.
inline constexpr int kPerRead = 8;

/// Shared memory of a block, in this order; all parts begin at multiples of 16 bytes.
struct LinearMemory {
  float* scale;      // [tokens][kLinearWarps], of the norm; before, partial sums
  unsigned char* x;  // a slab
  float* sums;       // [kLinearWarps][strips][tokens][kLinearSumStride]; overlaps x unless x is
                     // one slab

  __device__ LinearMemory(const LinearTile& tile, int64_t num_tokens) {
    scale = &shared_storage<float>();
    x = reinterpret_cast<unsigned char*>(scale + num_tokens * kLinearWarps);
    sums = reinterpret_cast<float*>(tile.one_slab ? x + tile.x_bytes : x);
  }
};

/// Position of this thread: its warp, and lane 4 g + t of the warp's fragments.
struct LinearLane {
  int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  int g = static_cast<int>(threadIdx.x) % kWarpSize / 4;
  int t = static_cast<int>(threadIdx.x) % 4;
};

/// First row of weight of strip `r` of a group. It may be past the end.
template <int kStrips>
__device__ inline int64_t strip_row(int64_t group, int r) {
  return (group * kStrips + r) * kStripRows;
}

__device__ inline float read_float(const void* from, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(from)[i];
  if (dtype == DType::kF16) return widen_f16(static_cast<const F16*>(from)[i].bits);
  return to_float(static_cast<const BF16*>(from)[i]);
}

/// `value` rounded to `dtype`.
__device__ inline float rounded(float value, DType dtype) {
  if (dtype == DType::kF32) return value;
  if (dtype == DType::kF16) return widen_f16(pack_f16(value, 0.0f));
  return to_float(BF16{static_cast<uint16_t>(pack_bf16(value, 0.0f))});
}

/// Elements [begin, begin + 8) of a row, zeros past its end.
__device__ inline Vector<float, kPerRead> read_floats(const void* row, DType dtype, int64_t begin,
                                                      int64_t size, bool aligned) {
  Vector<float, kPerRead> result = {};
  if (!aligned) {
#pragma unroll
    for (int i = 0; i < kPerRead; ++i) {
      if (begin + i < size) result.value[i] = read_float(row, dtype, begin + i);
    }
  } else if (begin < size) {
    if (dtype == DType::kF32) {
      return load_vector<float, kPerRead>(static_cast<const float*>(row) + begin);
    }
    const auto bits = load_vector<uint16_t, kPerRead>(static_cast<const uint16_t*>(row) + begin);
#pragma unroll
    for (int i = 0; i < kPerRead; ++i) {
      result.value[i] =
          dtype == DType::kF16 ? widen_f16(bits.value[i]) : to_float(BF16{bits.value[i]});
    }
  }
  return result;
}

/// Input of the product, before rounding. aligned: rows of x and the norm's weight are aligned to
/// 16 bytes.
struct LinearInput {
  const LinearParams& p;
  const float* scale;  // of the norm
  bool aligned;

  __device__ const void* row(int64_t token) const {
    const int64_t size = p.dtype == DType::kF32 ? 4 : 2;
    return static_cast<const char*>(p.x) + token * p.stride_x_token * size;
  }

  /// Writes 1 / rms of a token's row to to[token * kLinearWarps]; all threads call it. The order of
  /// additions depends on in_features alone. kTogether: tokens with loads in flight.
  template <int kTogether>
  __device__ void norm_rows(float* to) const {
    if (p.norm_weight == nullptr) return;
    const int thread = static_cast<int>(threadIdx.x);
    for (int64_t first = 0; first < p.num_tokens; first += kTogether) {
      float sum[kTogether] = {};
      for (int64_t i = thread * kPerRead; i < p.in_features; i += kLinearThreads * kPerRead) {
        Vector<float, kPerRead> part[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          const int64_t token = min(first + k, p.num_tokens - 1);
          part[k] = read_floats(row(token), p.dtype, i, p.in_features, aligned);
        }
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
#pragma unroll
          for (int j = 0; j < kPerRead; ++j) {
            sum[k] = fmaf(part[k].value[j], part[k].value[j], sum[k]);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const float of_warp = warp_sum(sum[k]);
        if (thread % kWarpSize == 0 && first + k < p.num_tokens) {
          to[(first + k) * kLinearWarps + thread / kWarpSize] = of_warp;
        }
      }
    }
    sync_block();
    if (thread < p.num_tokens) {
      float* of_token = to + thread * kLinearWarps;
      float sum = 0.0f;
      for (int warp = 0; warp < kLinearWarps; ++warp) sum += of_token[warp];
      of_token[0] = 1.0f / sqrtf(sum / static_cast<float>(p.in_features) + p.norm_eps);
    }
    sync_block();
  }

  /// Elements [begin, begin + 8) of a token's row after the norm.
  __device__ Vector<float, kPerRead> read(int64_t token, int64_t begin) const {
    auto part = read_floats(row(token), p.dtype, begin, p.in_features, aligned);
    if (p.norm_weight == nullptr) return part;
    const auto weight = read_floats(p.norm_weight, p.norm_dtype, begin, p.in_features, aligned);
#pragma unroll
    for (int i = 0; i < kPerRead; ++i) {
      part.value[i] = part.value[i] * scale[token * kLinearWarps] * weight.value[i];
    }
    return part;
  }
};

/// Writes an element of out, or adds to it.
__device__ inline void store_output(const LinearParams& p, int64_t token, int64_t column,
                                    float value) {
  const int64_t to = token * p.stride_out_token + column;
  if (p.accumulate) value += read_float(p.out, p.out_dtype, to);
  if (p.out_dtype == DType::kF32) {
    static_cast<float*>(p.out)[to] = value;
  } else {
    const uint32_t bits =
        p.out_dtype == DType::kF16 ? pack_f16(value, 0.0f) : pack_bf16(value, 0.0f);
    static_cast<uint16_t*>(p.out)[to] = static_cast<uint16_t>(bits);
  }
}

/// Adds the warps' sums of a group and writes its part of out.
template <int kStrips>
__device__ inline void finish_group(const LinearParams& p, int64_t group, const LinearLane& at,
                                    const FragmentC<float> (&sum)[kStrips][kTokenTiles],
                                    float* sums) {
  const int num_tokens = static_cast<int>(p.num_tokens);
  const auto place = [&](int warp, int r, int token) {
    return sums + ((warp * kStrips + r) * num_tokens + token) * kLinearSumStride;
  };
  sync_block();  // the memory overwritten now, the last group's sums or x, has been read
#pragma unroll
  for (int r = 0; r < kStrips; ++r) {
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = tile * 8 + 2 * at.t + i;
        if (token >= num_tokens) continue;
        const auto& value = sum[r][tile].value;
        store_vector(place(at.warp, r, token) + 2 * at.g, Vector<float, 2>{value[i], value[2 + i]});
      }
    }
  }
  sync_block();

  const auto output = [&](int r, int token, int row) {
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kLinearWarps; ++warp) total += place(warp, r, token)[row];
    if (p.bias == nullptr) return total;
    return total + read_float(p.bias, p.bias_dtype, strip_row<kStrips>(group, r) + row);
  };
  const int rows = p.silu_mul ? kStripRows : kStrips * kStripRows;
  const int64_t columns = p.silu_mul ? p.out_features / 2 : p.out_features;
  for (int i = static_cast<int>(threadIdx.x); i < num_tokens * rows; i += kLinearThreads) {
    const int token = i / rows, r = i % rows / kStripRows, row = i % kStripRows;
    const int64_t column = group * rows + i % rows;
    if (column >= columns) continue;
    float value = output(r, token, row);
    if (kStrips == 2 && p.silu_mul) value = value * sigmoid(value) * output(1, token, row);
    store_output(p, token, column, value);
  }
}

/// Multiplies all groups of a block. Product has
///   x, kNormedTogether                   the LinearInput, and the argument of its norm_rows
///   Piece, kInFlight                     a warp's chunk of a strip, and the number in flight
///   Source, source(row, chunk)           where a lane's part of a chunk is, of the strip that
///                                        begins at `row`
///   prefetch(source, i)                  brings what load(source, i) loads to L2
///   load(source, i) -> Piece             loads the warp's chunk, i rounds after a source's
///   stage(chunk, num_chunks)             x of these chunks to shared memory, by all threads
///   chunk_bytes()                        of all tokens' x of a chunk there
///   multiply(pieces, x, sum)             adds the products of strips' pieces, [kStrips], with the
///                                        chunk of x at `x`
/// The registers of a piece are loaded again as soon as it is multiplied, so loads continue over
/// barriers and from one group to the next. Addresses are computed once per turn; within a turn
/// their differences are constants.
template <int kStrips, class Product>
__device__ inline void multiply_groups(const LinearParams& p, const LinearTile& tile,
                                       const LinearMemory& memory, const Product& product) {
  constexpr int kRounds = Product::kInFlight / kStrips;  // of a turn
  const LinearLane at;
  const int num_chunks = static_cast<int>((p.in_features + kLinearChunk - 1) / kLinearChunk);
  const int num_rounds = (num_chunks - at.warp + kLinearWarps - 1) / kLinearWarps;  // of this warp
  const int slab_rounds = static_cast<int>(tile.slab_rounds);
  const int round_bytes = product.chunk_bytes() * kLinearWarps;
  typename Product::Piece pieces[kRounds][kStrips];
  typename Product::Source sources[kStrips];  // of the next turn, which has `left` rounds or more
  int left = 0;
  const auto find = [&](int64_t group, int round) {
    left = group < tile.num_groups ? num_rounds - round : 0;
#pragma unroll
    for (int r = 0; r < kStrips; ++r) {
      sources[r] = product.source(strip_row<kStrips>(group, r), round * kLinearWarps + at.warp);
    }
  };
  const auto load = [&](int i) {
    if (i >= left) return;
#pragma unroll
    for (int r = 0; r < kStrips; ++r) pieces[i][r] = product.load(sources[r], i);
  };
  const auto stage = [&](int round) {
    const int chunk = round * kLinearWarps;
    product.stage(chunk, min(num_chunks - chunk, slab_rounds * kLinearWarps));
    sync_block();
  };

  find(blockIdx.x, 0);
  // The first weights come to L2 while the kernel before ends.
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    if (i >= left) break;
#pragma unroll
    for (int r = 0; r < kStrips; ++r) product.prefetch(sources[r], i);
  }
  wait_for_stream();
#pragma unroll
  for (int i = 0; i < kRounds; ++i) load(i);
  product.x.template norm_rows<Product::kNormedTogether>(memory.scale);
  if (tile.one_slab) stage(0);
  for (int64_t group = blockIdx.x; group < tile.num_groups; group += gridDim.x) {
    FragmentC<float> sum[kStrips][kTokenTiles] = {};
    for (int round = 0; round * kLinearWarps < num_chunks; round += kRounds) {
      if (!tile.one_slab && round % slab_rounds == 0) {
        sync_block();  // the last slab and the last group's sums have been read
        stage(round);
      }
      int next_round = round + kRounds;
      int64_t next_group = group;
      if (next_round * kLinearWarps >= num_chunks) next_round = 0, next_group += gridDim.x;
      unsigned char* x = memory.x + at.warp * product.chunk_bytes() +
                         (tile.one_slab ? round : round % slab_rounds) * round_bytes;
#pragma unroll
      for (int i = 0; i < kRounds; ++i) {
        if (round + i < num_rounds) product.multiply(pieces[i], x + i * round_bytes, sum);
        if (i == 0) find(next_group, next_round);
        load(i);
      }
    }
    finish_group<kStrips>(p, group, at, sum, memory.sums);
  }
}

}  // namespace lampo::cuda
