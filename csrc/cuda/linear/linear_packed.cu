// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on packed weights (common/formats/formats.h), with gate or residual. The
// twin of cpu/linear/linear_packed.cpp: x is quantized in groups of 32 to int8, or with
// activation_bits 9 or 16 to two planes of int8, and a group of a weight row contributes
//   dw dx (sum qw qx - offset sum qx) + m dx sum qx
// with exact integer sums, added in f32 in two fused steps. Only the order of groups differs.
//
// Work is divided as in linear.cu: a block quantizes x into its shared memory and streams strips
// past it. mma.sync multiplies a group of a strip by 8 tokens at a time. Rows of the fragment are
// rows of the strip in the order 0, 2, ... 14, 1, 3, ... 15: a lane's 4-byte words of codes are
// then neighbours, and so are its two scales. A warp reads the 256 bytes of a group's 4-bit codes
// by one load of 8 bytes per lane: lower halves are the fragment's first half, upper ones its
// second.
// 8-bit codes take two such loads, scales and minima 4 bytes per lane each.
// Loads in flight: 8 (Q8_0) to 16 (Q4_0) groups per warp, 61 to 74 KB per multiprocessor (an H200
// needs 25 to 40 KB).
//
// Bytes: 18, 20 or 34 per 32 weights. Instructions by benchmarks/gpu_model.py: 33 (Q8_0) to 75 %
// (Q4_1) of an H200's issue slots at 4.3 TB/s for up to 8 tokens, which memory bounds; for 16, 50
// to 127 %: 4-bit weights are then bound by instructions.
// Llama-3.1-8B's gate and up [28672, 4096] at 4.3 TB/s:
//   Q4_0 66 MB  15 us;  Q4_1 73 MB  17 us;  Q8_0 125 MB  29 us
//
// Limits: in_features a multiple of 32; more tokens are launches of 16 each, which read the weight
// again, up to 128 of 16 bits; more are multiplied in tiles (linear_tiles.cu). Not run on a GPU
// yet: compiled for sm_80 to sm_120 without spills, and run on the CPU (tests/cuda_on_cpu/).
// Not tried: conversion of integers to floats by a magic number in the accumulator, which would
// relieve the conversion unit; dp4a for a single token.
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/ptx/global_memory.cuh"
#include "cuda/device/ptx/matrix.cuh"
#include "cuda/linear/linear_block.cuh"
#include "cuda/linear/linear_launch.h"

namespace lampo::cuda {
namespace {

/// A lane's part of a group of a strip: words t (with 8 bits also 4 + t), scales and minima of rows
/// 2 g and 2 g + 1.
template <class Format>
struct PackedPiece {
  uint32_t words[StripGroup<Format>::kWords / 4][2];
  uint32_t scales[1];
  uint32_t minima[1];
};

/// Scale and offset of a token's group.
template <class Format>
struct alignas(8) GroupScale {
  float scale;
  std::conditional_t<Format::kHasMinimum, float, int> offset;  // scale * sum, or -kOffset * sum
};

__device__ inline uint32_t pack_int8(const float* from) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word |= (static_cast<uint32_t>(static_cast<int>(from[i])) & 0xffu) << 8 * i;
  }
  return word;
}

/// Folds the values of 4 neighbouring lanes.
template <class Fold>
__device__ inline auto fold_quad(auto value, Fold fold) {
  value = fold(value, shuffle_xor(value, 1));
  return fold(value, shuffle_xor(value, 2));
}

template <class Format, int kPlanes, int kStrips>
struct PackedProduct {
  using Piece = PackedPiece<Format>;
  using Group = StripGroup<Format>;
  static constexpr int kInFlight = packed_in_flight(Group::kBytes);
  static constexpr int kNormedTogether = 2;
  static constexpr int kChunkBytes = packed_chunk_bytes(kPlanes);

  const LinearParams& p;
  const LinearInput& x;
  const LinearMemory& memory;
  struct Source {
    const uint8_t *words, *scales;
  };

  const LinearLane at = {};

  __device__ int chunk_bytes() const { return static_cast<int>(p.num_tokens) * kChunkBytes; }

  /// A chunk of x: [planes][tokens][4] pairs of words t and 4 + t, then [tokens] scales.
  __device__ FragmentB* x_part(unsigned char* chunk, int plane, int token, int t) const {
    const int num_tokens = static_cast<int>(p.num_tokens);
    return reinterpret_cast<FragmentB*>(chunk) + (plane * num_tokens + token) * 4 + t;
  }
  __device__ GroupScale<Format>* x_scale(unsigned char* chunk, int token) const {
    return reinterpret_cast<GroupScale<Format>*>(x_part(chunk, kPlanes, 0, 0)) + token;
  }

  __device__ Source source(int64_t first_row, int chunk) const {
    const int64_t groups = p.in_features / kGroupSize;
    const int64_t last = (p.out_features + kStripRows - 1) / kStripRows - 1;
    const int64_t group = min(first_row / kStripRows, last) * groups + chunk;
    const uint8_t* from = static_cast<const uint8_t*>(p.weight) + group * Group::kBytes;
    return {from + at.t * kStripRows * 4 + at.g * 8, from + Group::kScaleOffset + at.g * 4};
  }

  __device__ void prefetch(const Source& source, int i) const {
    const int begin = i * kLinearWarps * Group::kBytes;
#pragma unroll
    for (int j = 0; j < Group::kWords / 4; ++j) {
      prefetch_to_l2(source.words + begin + j * 4 * kStripRows * 4);
    }
    prefetch_to_l2(source.scales + begin);
  }

  __device__ Piece load(const Source& source, int i) const {
    const int begin = i * kLinearWarps * Group::kBytes;
    Piece piece = {};
#pragma unroll
    for (int j = 0; j < Group::kWords / 4; ++j) {
      load_once(piece.words[j], source.words + begin + j * 4 * kStripRows * 4);
    }
    load_once(piece.scales, source.scales + begin);
    if constexpr (Format::kHasMinimum) {
      load_once(piece.minima, source.scales + begin + Group::kMinimumOffset - Group::kScaleOffset);
    }
    return piece;
  }

  /// Four neighbouring threads quantize a group together, 8 inputs each.
  __device__ void stage(int chunk, int num_chunks) const {
    const int parts = num_chunks * 4, total = static_cast<int>(p.num_tokens) * parts;
    for (int first = 0; first < total; first += kLinearThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const int token = min(i, total - 1) / parts, part = min(i, total - 1) - token * parts;
      const auto values = x.read(token, (int64_t{chunk} * 4 + part) * kPerRead);
      quantize_part(values, part / 4, token, part % 4, i < total);
    }
  }

  /// Quantizes `quarter` of a group. All lanes call it; those that are not `valid` write nothing.
  __device__ void quantize_part(const Vector<float, kPerRead>& values, int chunk, int token,
                                int quarter, bool valid) const {
    uint32_t largest = 0;  // bits of the magnitudes; those of a NaN are the largest
#pragma unroll
    for (int i = 0; i < kPerRead; ++i) {
      largest = max(largest, bits_from_float(values.value[i]) & 0x7fffffffu);
    }
    largest = fold_quad(largest, [](uint32_t a, uint32_t b) { return max(a, b); });
    const float absmax = float_from_bits(largest);
    const float unit = kPlanes == 1 ? absmax : absmax / 256.0f;  // value of q = 127
    const float inverse = unit > 0.0f ? 127.0f / unit : 0.0f;
    constexpr float kLargest = kPlanes == 1 ? 127.0f : 127.0f * 256.0f;
    float quants[kPlanes][kPerRead];
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kPerRead; ++i) {
      // A NaN may become any integer: the scale passes it on.
      const float scaled = fminf(fmaxf(values.value[i] * inverse, -kLargest), kLargest);
      const float quant = rintf(scaled);
      sum += static_cast<int>(quant);
      quants[0][i] = kPlanes == 1 ? quant : rintf((quant + 0.25f) * (1.0f / 256.0f));
      if constexpr (kPlanes == 2) quants[1][i] = quant - 256.0f * quants[0][i];
    }
    sum = fold_quad(sum, [](int a, int b) { return a + b; });
    if (!valid) return;
    unsigned char* to = memory.x + chunk * chunk_bytes();
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int word = quarter * 2 + i;
        x_part(to, plane, token, word % 4)->reg[word / 4] = pack_int8(quants[plane] + 4 * i);
      }
    }
    if (quarter > 0) return;
    const float scale = unit / 127.0f;
    if constexpr (Format::kHasMinimum) {
      *x_scale(to, token) = {scale, scale * static_cast<float>(sum)};
    } else {
      *x_scale(to, token) = {scale, -Format::kOffset * sum};
    }
  }

  __device__ static FragmentA fragment(const Piece& piece) {
    if constexpr (Format::kCodeBits == 4) {
      constexpr uint32_t kLow = 0x0f0f0f0fu;
      const uint32_t (&w)[2] = piece.words[0];
      return {{w[0] & kLow, w[1] & kLow, w[0] >> 4 & kLow, w[1] >> 4 & kLow}};
    } else {
      return {{piece.words[0][0], piece.words[0][1], piece.words[1][0], piece.words[1][1]}};
    }
  }

  __device__ void multiply(const Piece (&pieces)[kStrips], unsigned char* x_chunk,
                           FragmentC<float> (&sum)[kStrips][kTokenTiles]) const {
    const int num_tokens = static_cast<int>(p.num_tokens);
    FragmentA left[kStrips];
    float scale[kStrips][2];
#pragma unroll
    for (int r = 0; r < kStrips; ++r) {
      left[r] = fragment(pieces[r]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        scale[r][i] = widen_f16(pieces[r].scales[0] >> 16 * i);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
      if (tile > 0 && num_tokens <= tile * 8) break;
      // Columns past the last token are ignored.
      const int column = min(tile * 8 + at.g, num_tokens - 1);
      FragmentB right[kPlanes];
#pragma unroll
      for (int i = 0; i < kPlanes; ++i) right[i] = *x_part(x_chunk, i, column, at.t);
      GroupScale<Format> of[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        of[i] = *x_scale(x_chunk, min(tile * 8 + 2 * at.t + i, num_tokens - 1));
      }
      FragmentC<int32_t> offset = {};
      if constexpr (Format::kOffset != 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) offset.value[i] = of[i % 2].offset;
      }
#pragma unroll
      for (int r = 0; r < kStrips; ++r) {
        FragmentC<int32_t> dot = offset;
        if constexpr (kPlanes == 2) {
          FragmentC<int32_t> upper = {};
          multiply_add<int8_t>(upper, left[r], right[0]);
#pragma unroll
          for (int i = 0; i < 4; ++i) dot.value[i] += upper.value[i] * 256;
        }
        multiply_add<int8_t>(dot, left[r], right[kPlanes - 1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& total = sum[r][tile].value[i];
          total = fmaf(static_cast<float>(dot.value[i]), scale[r][i / 2] * of[i % 2].scale, total);
          if constexpr (Format::kHasMinimum) {
            const float minimum = widen_f16(pieces[r].minima[0] >> 16 * (i / 2));
            total = fmaf(minimum, of[i % 2].offset, total);
          }
        }
      }
    }
  }
};

template <class Format, int kPlanes, int kStrips>
__global__ void __launch_bounds__(kLinearThreads)
    linear_packed_kernel(const __grid_constant__ LinearParams p,
                         const __grid_constant__ LinearTile tile, bool x_aligned) {
  const LinearMemory memory(tile, p.num_tokens);
  const LinearInput x{p, memory.scale, x_aligned};
  const PackedProduct<Format, kPlanes, kStrips> product{p, x, memory};
  multiply_groups<kStrips>(p, tile, memory, product);
}

template <class Format>
void run(const LinearParams& p, int device, Stream stream) {
  dispatch_int<8, 16>(p.activation_bits == 8 ? 8 : 16, [&]<int kBits>() {
    constexpr int kPlanes = kBits / 8;
    launch_linear(p, packed_chunk_bytes(kPlanes), packed_in_flight(StripGroup<Format>::kBytes),
                  linear_packed_kernel<Format, kPlanes, 1>,
                  linear_packed_kernel<Format, kPlanes, 2>, device, stream);
  });
}

}  // namespace

void linear_packed(const LinearParams& p, int device, Stream stream) {
  dispatch_format_on_cuda(p.format, [&]<class Format>() { run<Format>(p, device, stream); });
}

}  // namespace lampo::cuda
