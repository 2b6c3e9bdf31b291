// SPDX-License-Identifier: Apache-2.0
// Launches of a linear, for linear.cu, linear_packed.cu and linear_fp8.cu.
#pragma once

#include <algorithm>

#include "cuda/linear/linear_tile.h"
#include "cuda/runtime/device_limits.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/row_layout.h"
#include "params.h"

namespace lampo::cuda {

/// The last argument: rows of x and the norm's weight are aligned to 16 bytes.
using LinearKernel = void (*)(LinearParams, LinearTile, bool);

/// Launches the kernel once per 16 tokens; every launch reads the weight.
inline void launch_linear(const LinearParams& p, int chunk_bytes, int in_flight,
                          LinearKernel one_strip, LinearKernel two_strips, int device,
                          Stream stream) {
  LinearShape shape{
      .num_tokens = p.num_tokens,
      .in_features = p.in_features,
      .out_columns = p.silu_mul ? p.out_features / 2 : p.out_features,
      .gated = p.silu_mul,
      .chunk_bytes = chunk_bytes,
      .in_flight = in_flight,
  };
  const DeviceLimits& limits = device_limits("linear", device);
  const auto size = [](DType dtype) { return dtype == DType::kF32 ? 4 : 2; };
  LinearParams part = p;
  for (int64_t first = 0; first < p.num_tokens; first += part.num_tokens) {
    shape.num_tokens = p.num_tokens - first;
    const LinearTile tile =
        choose_linear_tile(shape, limits.num_sms, limits.shared_bytes_per_block);
    part.num_tokens = tile.tokens;
    part.x = static_cast<const char*>(p.x) + first * p.stride_x_token * size(p.dtype);
    part.out = static_cast<char*>(p.out) + first * p.stride_out_token * size(p.out_dtype);
    const bool aligned = p.in_features % 8 == 0 &&
                         rows_aligned(part.x, p.stride_x_token, size(p.dtype)) &&
                         rows_aligned(p.norm_weight, 0, size(p.norm_dtype));
    const Launch at{
        .op = "linear",
        .device = device,
        .stream = stream,
        .grid = dim3(static_cast<unsigned>(
            std::min({tile.num_groups, int64_t{limits.num_sms}, kMaxBlocks}))),
        .block = dim3(32 * kLinearWarps),
        .shared_bytes = static_cast<size_t>(tile.shared_bytes),
        .begins_early = true,
    };
    launch(at, tile.strips == 1 ? one_strip : two_strips, part, tile, aligned);
  }
}

/// The parts of cuda::linear in linear_packed.cu and linear_fp8.cu.
void linear_packed(const LinearParams& p, int device, Stream stream);
void linear_fp8(const LinearParams& p, int device, Stream stream);

/// The part of cuda::linear in linear_tiles.cu, and whether it takes this call.
bool takes_tiles(const LinearParams& p);
void linear_tiles(const LinearParams& p, int device, Stream stream);

}  // namespace lampo::cuda
