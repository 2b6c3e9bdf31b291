// SPDX-License-Identifier: Apache-2.0
// linear for many tokens: x of 16 bits, and a dense weight of its type or a packed one, in tiles of
// tokens and outputs.
//
// A block multiplies kTokens rows of x with kOutputs rows of the weight, 64 inputs at a time, from
// shared memory: three stages filled by cp.async, ldmatrix, mma.sync m16n8k16 with f32 sums. A warp
// has half of the tokens and 32 outputs: with silu_mul a strip of gate and one of up, so the gate
// stays in registers. x goes through registers if it has a norm or unaligned rows; every block then
// computes the norms of its tokens itself. A packed weight is dequantized to x's type on the way to
// shared memory; x is not rounded then, whatever activation_bits says.
//
// Sums run over the inputs in order, in both sizes of tiles: a token's bits depend neither on the
// other tokens nor on the device, as long as this kernel is chosen: from 17 tokens on, with a
// packed weight from 129 on (fewer are 8 launches at most, which read 4.5 bits per weight each).
//
// Tiles of 128 x 128, or of 64 x 64 if those are fewer than the multiprocessors. Shared memory 97
// or 49 KB. Bytes of a block per 64 inputs: 16 KB of x and 16 KB of weight for 2.1 MFLOP. On an
// H200 (about 780 TFLOP/s by wgmma, two thirds of that by mma.sync), bfloat16, 512 tokens,
// [28672, 4096]: 120 GFLOP, 0.23 ms. Not run on a GPU yet: compiled for sm_80 to sm_120 without
// spills, and run on the CPU (tests/cuda_on_cpu/).
#include <algorithm>

#include "common/dispatch.h"
#include "cuda/device/ptx/async_copy.cuh"
#include "cuda/device/ptx/matrix.cuh"
#include "cuda/device/strip.cuh"
#include "cuda/linear/linear_block.cuh"
#include "cuda/linear/linear_launch.h"

namespace lampo::cuda {
namespace {

constexpr int kInputs = 64;           // of a stage
constexpr int kChunks = kInputs / 8;  // of 16 bytes, per row of a stage
constexpr int kStages = 3;
constexpr int kWarpOutputs = 2 * kStripRows;

template <int kTokens, int kOutputs>
struct TilesStorage {
  uint4 x[kStages][kTokens * kChunks];
  uint4 weight[kStages][kOutputs * kChunks];
  float scale[kTokens];  // of the norm
};

/// Place of a 16-byte chunk of a row: eight rows of one chunk are in different banks.
__device__ inline int chunk_at(int row, int chunk) { return row * kChunks + (chunk ^ row % 8); }

/// One block's tile: rows of x from first_token on, rows of the weight from first_output on.
/// W: T, or WeightFormat for a packed weight.
template <class T, class W, int kTokens, int kOutputs, bool kCopied>
struct TilesProduct {
  static constexpr int kWarps = 2 * kOutputs / kWarpOutputs;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRowBlocks = kTokens / 32;  // of 16 tokens, per warp
  static constexpr int kColumnBlocks = kWarpOutputs / 8;
  using Storage = TilesStorage<kTokens, kOutputs>;
  using Sums = FragmentC<float>[kRowBlocks][kColumnBlocks];

  const LinearParams& p;
  Storage& storage;
  int64_t first_token, first_output;
  bool x_aligned;
  int thread = static_cast<int>(threadIdx.x);
  int lane = thread % kWarpSize;
  int warp_token = thread / kWarpSize % 2 * (kTokens / 2);  // in the tile
  int warp_output = thread / kWarpSize / 2 * kWarpOutputs;

  __device__ const T* x_row(int64_t token) const {
    return static_cast<const T*>(p.x) + token * p.stride_x_token;
  }

  /// Starts the copies of 64 inputs of `rows` rows, of which those from `num_rows` on are zeros.
  template <int kRows>
  __device__ void copy_rows(uint4* to, const T* from, int64_t stride, int64_t num_rows,
                            int64_t input) const {
    for (int i = thread; i < kRows * kChunks; i += kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const int64_t at = input + chunk * 8;
      const bool inside = row < num_rows && at < p.in_features;
      copy_async<16>(to + chunk_at(row, chunk), inside ? from + row * stride + at : from,
                     inside ? 16 : 0);
    }
  }

  /// Dequantizes 64 inputs of the tile's rows of the weight, zeros behind the last row and input.
  /// Neighbouring threads have neighbouring rows.
  template <class Format>
  __device__ void dequantize_rows(uint4* to, int64_t input) const {
    constexpr int kGroups = kInputs / kGroupSize;
    const int64_t strip_bytes = StripGroup<Format>::strip_bytes(p.in_features);
    for (int i = thread; i < kOutputs * kGroups * 4; i += kThreads) {
      const int row = i % kOutputs, t = i / kOutputs % 4, in_stage = i / kOutputs / 4;
      const int64_t group = input / kGroupSize + in_stage, output = first_output + row;
      Vector<float, 4> weights[2] = {};
      if (group < p.in_features / kGroupSize && output < p.out_features) {
        const uint8_t* strip =
            static_cast<const uint8_t*>(p.weight) + output / kStripRows * strip_bytes;
        read_weights<Format>(weights, group_at<Format>(strip, group), output % kStripRows, t);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const auto& v = weights[h].value;
        const int at = in_stage * kGroupSize + 16 * h + 4 * t;
        reinterpret_cast<uint2*>(to + chunk_at(row, at / 8))[at / 4 % 2] = {pack<T>(v[0], v[1]),
                                                                            pack<T>(v[2], v[3])};
      }
    }
  }

  /// Inputs at ... at + 7 of a row of x after its norm, rounded as rms_norm stores them.
  __device__ uint4 read_x(int row, int64_t at) const {
    const int64_t token = first_token + row;
    if (token >= p.num_tokens) return {};
    auto part = read_floats(x_row(token), p.dtype, at, p.in_features, x_aligned);
    if (p.norm_weight != nullptr) {
      const auto norm = read_floats(p.norm_weight, p.norm_dtype, at, p.in_features, x_aligned);
#pragma unroll
      for (int i = 0; i < 8; ++i) part.value[i] *= storage.scale[row] * norm.value[i];
    }
    return {pack<T>(part.value[0], part.value[1]), pack<T>(part.value[2], part.value[3]),
            pack<T>(part.value[4], part.value[5]), pack<T>(part.value[6], part.value[7])};
  }

  /// Fills a stage with the inputs from `input` on; the copies are in flight.
  __device__ void fill(int stage, int64_t input) const {
    if constexpr (kCopied) {
      copy_rows<kTokens>(storage.x[stage], x_row(first_token), p.stride_x_token,
                         p.num_tokens - first_token, input);
    } else {
      for (int i = thread; i < kTokens * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        storage.x[stage][chunk_at(row, chunk)] = read_x(row, input + chunk * 8);
      }
    }
    if constexpr (std::is_same_v<W, T>) {
      copy_rows<kOutputs>(storage.weight[stage],
                          static_cast<const T*>(p.weight) + first_output * p.stride_weight_row,
                          p.stride_weight_row, p.out_features - first_output, input);
    } else {
      switch_format(WeightFormats{}, p.format,
                    [&]<class Format>() { dequantize_rows<Format>(storage.weight[stage], input); });
    }
  }

  /// Scales of the tile's tokens. The order of additions depends on in_features alone.
  __device__ void norm_tokens() const {
    if (p.norm_weight == nullptr) return;
    for (int row = thread / kWarpSize; row < kTokens; row += kWarps) {
      if (first_token + row >= p.num_tokens) continue;
      float sum = 0.0f;
      for (int64_t i = lane * kPerRead; i < p.in_features; i += kWarpSize * kPerRead) {
        const auto part =
            read_floats(x_row(first_token + row), p.dtype, i, p.in_features, x_aligned);
#pragma unroll
        for (int j = 0; j < kPerRead; ++j) sum = fmaf(part.value[j], part.value[j], sum);
      }
      sum = warp_sum(sum);
      if (lane == 0) {
        storage.scale[row] = 1.0f / sqrtf(sum / static_cast<float>(p.in_features) + p.norm_eps);
      }
    }
    sync_block();
  }

  __device__ void multiply(int stage, Sums& sums) const {
#pragma unroll
    for (int step = 0; step < kInputs / 16; ++step) {
      FragmentA a[kRowBlocks];
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        const int row = warp_token + 16 * m + lane % 16;
        load_matrices(a[m].reg, storage.x[stage] + chunk_at(row, 2 * step + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < kColumnBlocks; n += 2) {
        uint32_t reg[4];  // outputs 0 to 7 of two chunks, then outputs 8 to 15
        const int row = warp_output + 8 * n + lane / 16 * 8 + lane % 8;
        load_matrices(reg, storage.weight[stage] + chunk_at(row, 2 * step + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          multiply_add<T>(sums[m][n], a[m], FragmentB{{reg[0], reg[1]}});
          multiply_add<T>(sums[m][n + 1], a[m], FragmentB{{reg[2], reg[3]}});
        }
      }
    }
  }

  __device__ void finish(const Sums& sums) const {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t token = first_token + warp_token + 16 * m + lane / 4 + 8 * (i / 2);
        if (token >= p.num_tokens) continue;
        const auto output = [&](int n) {
          const int64_t row = first_output + warp_output + 8 * n + lane % 4 * 2 + i % 2;
          const float sum = sums[m][n].value[i];
          const bool biased = p.bias != nullptr && row < p.out_features;
          return biased ? sum + read_float(p.bias, p.bias_dtype, row) : sum;
        };
        const int64_t first = first_output + warp_output;  // the warp's rows of the weight
        constexpr int kOfGate = kStripRows / 8;            // column blocks
#pragma unroll
        for (int n = 0; n < kColumnBlocks; ++n) {
          const int64_t in_strip = 8 * n + lane % 4 * 2 + i % 2;
          if (!p.silu_mul) {
            if (first + in_strip < p.out_features)
              store_output(p, token, first + in_strip, output(n));
          } else if (n < kOfGate && first < p.out_features) {
            const float gate = output(n);
            store_output(p, token, first / 2 + in_strip,
                         gate * sigmoid(gate) * output(n + kOfGate));
          }
        }
      }
    }
  }

  __device__ void run() const {
    const auto num_stages = static_cast<int>((p.in_features + kInputs - 1) / kInputs);
    norm_tokens();
    Sums sums = {};
    for (int next = 0; next < num_stages + kStages - 1; ++next) {
      const int i = next - (kStages - 1);
      if (i >= 0) {
        wait_copies<kStages - 2>();
        sync_block();  // stage i has arrived; the one before has been read
      }
      if (next < num_stages) fill(next % kStages, int64_t{next} * kInputs);
      commit_copies();
      if (i >= 0) multiply(i % kStages, sums);
    }
    wait_copies<0>();
    finish(sums);
    sync_block();  // all stages have been read
  }
};

/// The tiles of one group of outputs are neighbours: they share its weight in the L2 cache.
template <class T, class W, int kTokens, int kOutputs, bool kCopied>
__global__ void __launch_bounds__(TilesProduct<T, W, kTokens, kOutputs, kCopied>::kThreads,
                                  kTokens == 64 ? 4 : 1)
    linear_tiles_kernel(const __grid_constant__ LinearParams p, int64_t token_tiles,
                        int64_t num_tiles, bool x_aligned) {
  using Product = TilesProduct<T, W, kTokens, kOutputs, kCopied>;
  wait_for_stream();
  for (int64_t tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    Product{.p = p,
            .storage = shared_storage<typename Product::Storage>(),
            .first_token = tile % token_tiles * kTokens,
            .first_output = tile / token_tiles * kOutputs,
            .x_aligned = x_aligned}
        .run();
  }
}

constexpr int64_t tiles_of(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

template <class T, class W, int kTile, bool kCopied>
void run_tiles(const LinearParams& p, bool x_aligned, int device, Stream stream) {
  using Product = TilesProduct<T, W, kTile, kTile, kCopied>;
  const int64_t token_tiles = tiles_of(p.num_tokens, kTile);
  const int64_t num_tiles = token_tiles * tiles_of(p.out_features, kTile);
  const Launch at{.op = "linear",
                  .device = device,
                  .stream = stream,
                  .grid = dim3(static_cast<unsigned>(std::min(num_tiles, kMaxBlocks))),
                  .block = dim3(Product::kThreads),
                  .shared_bytes = sizeof(typename Product::Storage),
                  .begins_early = true};
  launch(at, linear_tiles_kernel<T, W, kTile, kTile, kCopied>, p, token_tiles, num_tiles,
         x_aligned);
}

}  // namespace

bool takes_tiles(const LinearParams& p) {
  if (p.dtype == DType::kF32) return false;
  if (p.packed) return p.num_tokens > 8 * kLinearTokens;
  return p.num_tokens > kLinearTokens && p.dtype == p.weight_dtype && p.in_features % 8 == 0 &&
         p.in_features > 0 && rows_aligned(p.weight, p.stride_weight_row, 2);
}

void linear_tiles(const LinearParams& p, int device, Stream stream) {
  const bool x_aligned = rows_aligned(p.x, p.stride_x_token, 2) &&
                         rows_aligned(p.norm_weight, 0, p.norm_dtype == DType::kF32 ? 4 : 2);
  const bool copied = x_aligned && p.norm_weight == nullptr;
  const bool large = tiles_of(p.num_tokens, 128) * tiles_of(p.out_features, 128) >=
                     device_limits("linear", device).num_sms;
  dispatch_dtype<BF16, F16>(p.dtype, [&]<class T>() {
    if (p.packed) {
      run_tiles<T, WeightFormat, 64, false>(p, x_aligned, device, stream);
    } else if (large) {
      copied ? run_tiles<T, T, 128, true>(p, x_aligned, device, stream)
             : run_tiles<T, T, 128, false>(p, x_aligned, device, stream);
    } else {
      copied ? run_tiles<T, T, 64, true>(p, x_aligned, device, stream)
             : run_tiles<T, T, 64, false>(p, x_aligned, device, stream);
    }
  });
}

}  // namespace lampo::cuda
