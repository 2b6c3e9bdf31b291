// SPDX-License-Identifier: Apache-2.0
// Division of a linear's weight among blocks: pure functions, for launchers and tests.
#pragma once

#include <cstdint>

#include "common/formats/formats.h"

namespace lampo::cuda {

/// A block multiplies strips of 16 rows. Its warps alternate along the inputs: chunk c of 32 inputs
/// belongs to warp c % 16, in round c / 16. A warp adds its chunks in order, and the warps' sums
/// are added in order. Nothing below changes that: a token's bits depend on in_features alone.
inline constexpr int kLinearWarps = 16;
inline constexpr int kLinearChunk = 32;
inline constexpr int kLinearTokens = 16;

/// Floats between the sums of neighbouring tokens of a strip: 16, and 4 that avoid bank conflicts.
inline constexpr int kLinearSumStride = kStripRows + 4;

struct LinearTile {
  int strips;           // multiplied together by a block: 1 or 2
  int tokens;           // of one launch, at most
  int64_t num_groups;   // of `strips` strips; a block takes one at a time
  int64_t slab_rounds;  // rounds of x in shared memory at a time
  bool one_slab;        // all of x is in shared memory
  int64_t x_bytes;      // of a slab
  int64_t shared_bytes;
};

struct LinearShape {
  int64_t num_tokens;
  int64_t in_features;
  int64_t out_columns;  // strips of 16 of them
  bool gated;           // silu_mul: a strip of gate and one of up together
  int chunk_bytes;      // of a token's chunk in shared memory
  int in_flight;        // chunks of strips with loads in flight per warp, even
};

/// Bytes before x in shared memory: the warps' sums of squares of every token.
constexpr int64_t linear_squares_bytes(int64_t tokens) { return tokens * kLinearWarps * 4; }
/// Bytes of the warps' sums of a group's outputs.
constexpr int64_t linear_sums_bytes(int64_t tokens, int strips) {
  return tokens * strips * kLinearWarps * kLinearSumStride * 4;
}

/// Chunks in flight of dense weights of `weight_bytes` bytes: 128 bytes per lane, 64 KB per
/// multiprocessor.
constexpr int dense_in_flight(int weight_bytes) { return 8 / weight_bytes; }

/// Chunks in flight of packed weights: an even number within 4.5 KB per warp and the registers of a
/// lane that other values leave, fewer with two sets of scales. 12 of Q4_0, 8 of Q4_K, 4 of Q6_K:
/// 26 to 61 KB per multiprocessor, 16 and 21 KB of Q2_K and Q3_K.
constexpr int packed_in_flight(int group_bytes, int registers, int sets) {
  const int by_bytes = 4608 / group_bytes / 2 * 2;
  const int by_registers = (sets == 1 ? 36 : 26) / registers / 2 * 2;
  return by_bytes < by_registers ? by_bytes : by_registers;
}

/// Bytes of a token's chunk of x: two planes of int8, and a scale with one sum or two.
constexpr int packed_chunk_bytes(int sums) { return 2 * kLinearChunk + 8 * sums; }

/// Bytes of all tokens' chunks of x together, from `chunk_bytes` of each: a multiple of 16.
LAMPO_HOST_DEVICE constexpr int64_t linear_chunk_bytes(int64_t tokens, int64_t chunk_bytes) {
  return (tokens * chunk_bytes + 15) / 16 * 16;
}

/// Strips: two at a time, which halves the reads of x from shared memory, unless the last block
/// then ends later than with one. x: normed or quantized, it stays in shared memory while weights
/// stream past. If it does not fit, it is processed in slabs of whole turns of loads (in_flight / 2
/// rounds), two strips at a time; the sums then use the slab's memory. If no slab fits either, a
/// launch has fewer than 16 tokens. bfloat16, 132 multiprocessors of 227 KB:
///   tokens  in     out    strips  groups  x            of 227 KB
///        1  4096   28672  2       896     one slab     8 KB and 3 KB for sums
///       16  4096   6144   1       384     one slab     128 KB and 20 KB for sums
///       16  14336  4096   2       128     two slabs    224 KB, 7168 inputs each
constexpr LinearTile choose_linear_tile(const LinearShape& shape, int num_sms,
                                        int64_t shared_bytes) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t chunks = ceil_div(shape.in_features, kLinearChunk);
  const int64_t rounds = ceil_div(chunks, kLinearWarps);
  const int64_t num_strips = ceil_div(shape.out_columns, kStripRows);
  const auto time = [&](int strips) {
    return ceil_div(ceil_div(num_strips, strips), num_sms) * strips;
  };
  const int fitting = shape.gated || time(2) <= time(1) ? 2 : 1;
  LinearTile tile{};
  const auto use = [&](int strips, int tokens, int64_t slab_rounds, bool one_slab,
                       int64_t x_bytes) {
    const int64_t sums = linear_sums_bytes(tokens, strips);
    x_bytes = ceil_div(x_bytes, 16) * 16;
    tile = {.strips = strips,
            .tokens = tokens,
            .num_groups = shape.gated ? num_strips : ceil_div(num_strips, strips),
            .slab_rounds = slab_rounds,
            .one_slab = one_slab,
            .x_bytes = x_bytes,
            .shared_bytes = linear_squares_bytes(tokens) +
                            (one_slab ? x_bytes + sums : (x_bytes > sums ? x_bytes : sums))};
    return tile.shared_bytes <= shared_bytes;
  };
  const int turn = shape.in_flight / 2;
  int tokens =
      static_cast<int>(shape.num_tokens < kLinearTokens ? shape.num_tokens : kLinearTokens);
  for (; tokens > 0; --tokens) {
    const int64_t chunk_bytes = linear_chunk_bytes(tokens, shape.chunk_bytes);
    if (use(fitting, tokens, rounds, true, chunks * chunk_bytes)) return tile;
    const int64_t round_bytes = kLinearWarps * chunk_bytes;
    const int64_t slab = (shared_bytes - linear_squares_bytes(tokens)) / round_bytes / turn * turn;
    if (slab > 0 && use(2, tokens, slab, false, slab * round_bytes)) return tile;
  }
  return tile;
}

}  // namespace lampo::cuda
