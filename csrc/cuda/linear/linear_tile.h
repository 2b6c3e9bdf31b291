// SPDX-License-Identifier: Apache-2.0
// How linear's blocks share out a matrix: pure functions, for the launchers and the tests.
#pragma once

#include <cstdint>

#include "common/formats/formats.h"

namespace lampo::cuda {

/// A block multiplies strips of 16 rows, its warps take turns along the inputs: chunk c of 32
/// belongs to warp c % 16, in its round c / 16. A warp adds its chunks in order, and the warps'
/// sums are added in order. Nothing below changes that: a token's bits depend on in_features alone.
inline constexpr int kLinearWarps = 16;
inline constexpr int kLinearChunk = 32;
inline constexpr int kLinearTokens = 16;

/// Floats from a token's sums to the next in a strip's: 16, and 4 so that stores meet no conflict.
inline constexpr int kLinearSumStride = kStripRows + 4;

struct LinearTile {
  int strips;           // that a block multiplies together: 1 or 2
  int tokens;           // at most, in one launch
  int64_t num_groups;   // of `strips` strips, each for one block at a time
  int64_t slab_rounds;  // of x that lie in shared memory at a time
  bool one_slab;        // all of x does
  int64_t x_bytes;      // of a slab
  int64_t shared_bytes;
};

struct LinearShape {
  int64_t num_tokens;
  int64_t in_features;
  int64_t out_columns;  // strips of 16 of them
  bool gated;           // silu_mul: a strip of gate and one of up together
  int chunk_bytes;      // of a token's chunk in shared memory
  int in_flight;        // chunks of strips that a warp has asked for at a time, even
};

/// Before x in shared memory: of each token the warps' shares of its sum of squares.
constexpr int64_t linear_squares_bytes(int64_t tokens) { return tokens * kLinearWarps * 4; }
/// The warps' sums of a group's outputs.
constexpr int64_t linear_sums_bytes(int64_t tokens, int strips) {
  return tokens * strips * kLinearWarps * kLinearSumStride * 4;
}

/// Of dense weights of so many bytes each: 128 bytes of every lane, 64 KB of a multiprocessor.
constexpr int dense_in_flight(int weight_bytes) { return 8 / weight_bytes; }

/// Of packed weights: as many groups as 4.5 KB of a warp hold, in fours. 16 of Q4_0, 12 of Q4_1, 8
/// of Q8_0: 61 to 74 KB of a multiprocessor.
constexpr int packed_in_flight(int group_bytes) { return 4608 / group_bytes / 4 * 4; }

/// A token's chunk of x: so many planes of int8, and 8 bytes of scales.
constexpr int packed_chunk_bytes(int planes) { return planes * kLinearChunk + 8; }

/// The blocks' time in strips is what the last of them takes, so a block takes two strips at a time
/// (and reads x half as often from shared memory) where that is not later, and one otherwise. The
/// normed or quantized x stays in shared memory while the weights stream by. Where it does not fit,
/// slab after slab of it does, of whole turns of loads (in_flight / 2 rounds), for two strips at a
/// time; the sums then use the slab's memory. Fewer tokens than 16 go together where not even that
/// fits. bfloat16, 132 multiprocessors of 227 KB:
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
    const int64_t chunk_bytes = tokens * static_cast<int64_t>(shape.chunk_bytes);
    if (use(fitting, tokens, rounds, true, chunks * chunk_bytes)) return tile;
    const int64_t round_bytes = kLinearWarps * chunk_bytes;
    const int64_t slab = (shared_bytes - linear_squares_bytes(tokens)) / round_bytes / turn * turn;
    if (slab > 0 && use(2, tokens, slab, false, slab * round_bytes)) return tile;
  }
  return tile;
}

}  // namespace lampo::cuda
