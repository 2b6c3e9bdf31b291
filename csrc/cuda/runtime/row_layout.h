// SPDX-License-Identifier: Apache-2.0
// Division of rows among the threads of a block: pure functions, for launchers and tests.
#pragma once

#include <cstdint>

namespace lampo::cuda {

inline constexpr int kWarpRowsPerBlock = 4;

/// Threads for a reduction over rows that are read by 16-byte vectors. Vector v of a row belongs to
/// thread v % threads_per_row, in its round v / threads_per_row.
struct RowLayout {
  int threads_per_row;  // a multiple of 32, at most 1024
  int rows_per_block;   // more than one only if a row belongs to one warp
  int rounds;           // vectors of a thread: 1, 2 or 4, kept in registers; 0: more, read twice
};

/// Layout by the row's length alone: a row is summed in the same order, to the same bits, in any
/// batch and at any alignment.
///
/// Short rows: a warp per row, no barrier. Longer ones: two vectors per thread, so that half of a
/// multiprocessor's threads keep 32 KB in flight (25 KB hide an H200's memory latency), until a
/// block is full. bfloat16, 8 per vector:
///   hidden_size   576 ->   72 vectors ->   32 threads a row, 4 rows a block, 4 rounds
///   hidden_size  4096 ->  512 vectors ->  256 threads,       1 row,          2 rounds
///   hidden_size 65536 -> 8192 vectors -> 1024 threads,       1 row,          8 rounds, read twice
constexpr RowLayout choose_row_layout(int64_t hidden_size, int element_size) {
  const int64_t per_vector = 16 / element_size;
  const int64_t vectors = (hidden_size + per_vector - 1) / per_vector;
  if (vectors <= 32 * 4) {
    return {.threads_per_row = 32,
            .rows_per_block = kWarpRowsPerBlock,
            .rounds = vectors <= 32   ? 1
                      : vectors <= 64 ? 2
                                      : 4};
  }
  if (vectors > 1024 * 2) return {.threads_per_row = 1024, .rows_per_block = 1, .rounds = 0};
  const int64_t warps = (vectors + 63) / 64;
  return {.threads_per_row = static_cast<int>(warps * 32), .rows_per_block = 1, .rounds = 2};
}

/// Threads of a block and blocks of a row for an elementwise op, one vector per thread. bfloat16:
///   size   192 ->   24 vectors ->  32 threads, 1 block a row
///   size 14336 -> 1792 vectors -> 256 threads, 7 blocks a row
struct ElementLayout {
  int threads;
  int64_t blocks_per_row;
};

constexpr ElementLayout choose_element_layout(int64_t size, int element_size) {
  const int64_t per_vector = 16 / element_size;
  const int64_t vectors = (size + per_vector - 1) / per_vector;
  const int64_t threads = vectors < 256 ? (vectors + 31) / 32 * 32 : 256;
  return {static_cast<int>(threads), (vectors + threads - 1) / threads};
}

/// Whether rows that start at `pointer` and every `stride` elements can be moved by 16 bytes.
inline bool rows_aligned(const void* pointer, int64_t stride, int element_size) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride * element_size % 16 == 0;
}

}  // namespace lampo::cuda
