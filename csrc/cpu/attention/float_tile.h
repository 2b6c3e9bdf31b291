// SPDX-License-Identifier: Apache-2.0
// A key tile in f32, for any cache type and any CPU:
//   1. K: rows gathered through the page table, widened and transposed into kt [head_dim, 64];
//   2. scores [rows, 64] = q kt, lanes across keys: no horizontal sums;
//   3. the online softmax, row by row, in place (online_softmax.h);
//   4. acc [rows, head_dim] += p V, lanes across head_dim; few rows read V in its page, many rows a
//      widened copy.
#pragma once

#include "cpu/attention/key_tile.h"
#include "cpu/attention/matmul_block.h"
#include "cpu/attention/online_softmax.h"
#include "cpu/vec/row.h"
#include "cpu/vec/units.h"

namespace lampo::cpu::LAMPO_ISA {

/// Number of rows above which a widened copy of V pays.
static constexpr int kRowsWorthWideningV = 2 * kMaxBlockRows;
/// Largest kt, in floats, that one register block of rows passes over at once: it leaves room in
/// L1.
static constexpr int64_t kSinglePassKtFloats = 4096;

/// kt[i][j] = element i of row j, for kWidth rows.
template <class T>
static inline void transpose_rows(const char* const* rows, int64_t head_dim, float* kt,
                                  int64_t stride, Prefetcher& prefetcher) {
  constexpr int kWidth = F32::kWidth;
  constexpr int kParts = 4 / static_cast<int>(sizeof(T));
  constexpr int64_t kBlock = kWidth * kParts;
  const auto put = [&](const Units* units, int64_t first, int64_t count) {
#pragma GCC unroll 16
    for (int u = 0; u < kWidth; ++u) {
      if (u * kParts >= count) break;
      float* to = kt + (first + u * kParts) * stride;
      store(to, widen<T, 0>(units[u]));
      if constexpr (kParts > 1) store(to + stride, widen<T, 1>(units[u]));
      if constexpr (kParts > 2) store(to + 2 * stride, widen<T, 2>(units[u]));
      if constexpr (kParts > 2) store(to + 3 * stride, widen<T, 3>(units[u]));
    }
  };
  // The transposition reads across rows: prefetch along them first, in the order of addresses.
  const int64_t row_bytes = head_dim * static_cast<int64_t>(sizeof(T));
  for (int r = 0; r < kWidth; ++r) {
    for (int64_t at = 0; at < row_bytes; at += 64) prefetch_l1(rows[r] + at);
  }
  int64_t i = 0;
  for (; i + kBlock <= head_dim; i += kBlock) {
    Units units[kWidth];
    for (int line = 0; line < kWidth; ++line) prefetcher.step();
    load_transposed(rows, i * static_cast<int64_t>(sizeof(T)), units);
    put(units, i, kBlock);
  }
  if (i < head_dim) {
    char tail[kWidth][kWidth * 4] = {};
    const char* tails[kWidth];
    for (int r = 0; r < kWidth; ++r) {
      const int64_t size = static_cast<int64_t>(sizeof(T));
      memcpy(tail[r], rows[r] + i * size, static_cast<size_t>((head_dim - i) * size));
      tails[r] = tail[r];
    }
    Units units[kWidth];
    load_transposed(tails, 0, units);
    put(units, i, head_dim - i);
  }
}

template <class T>
class FloatTile {
 public:
  FloatTile(const PagedAttentionParams& params, const Scratch& scratch)
      : p(params), s_(scratch), width_(round_up(params.head_dim, 16)) {}

  /// Number of floats of a row of accumulators.
  int64_t width() const { return width_; }

  template <class Q>
  void load_query(int row, const Q* q) {
    float* to = s_.q + row * width_;
    for_each_vector(p.head_dim, [&](int64_t i, int n) { store(to + i, load_n(q + i, n)); });
  }

  /// Adds the key tile at `start` to the rows' states; `seen`: keys that any row sees. Prefetches
  /// the rows of the next tile unless `next` is null. first: the first tile of a split, acc counts
  /// as 0.
  void run(const QueryTile& tile, int64_t start, const KeyRange& seen, const TileRows& keys,
           const TileRows* next, bool first) {
    if (first) {
      const int64_t size = tile.num_rows() * width_;
      for (int64_t i = 0; i < size; i += F32::kWidth) store(s_.acc + i, F32());
    }
    Prefetcher prefetcher;
    if (next != nullptr) {
      prefetcher.row = next->k;
      prefetcher.end = next->v + kKeyTile;
      prefetcher.bytes = p.head_dim * static_cast<int64_t>(sizeof(T));
    }
    add(tile, start, seen, keys, prefetcher);
    while (prefetcher.row != prefetcher.end) prefetcher.step();
  }

  /// Reduces l of the rows to a float, after the last key tile of a split.
  void finish(int rows) const {
    for (int row = 0; row < rows; ++row) s_.l[row * 16] = reduce_add(load(s_.l + row * 16));
  }

  /// Puts a row of accumulators in the order of columns: they are.
  static void restore(float*) {}

 private:
  /// Scores of some rows with the keys [16 * first, ...) of the tile that kt holds.
  void score(int row, int count, const RowView& block, int kt_first, int64_t kt_stride,
             Prefetcher& prefetcher) {
    const Depth depth{0, static_cast<int>(p.head_dim)};
    const float* kt = s_.kt + (block.first - kt_first) * F32::kWidth;
    float* to = s_.scores + row * kKeyTile + block.first * F32::kWidth;
    multiply(count, s_.q + row * width_, width_, StridedRows<float>{kt, kt_stride}, depth,
             block.last - block.first, to, kKeyTile, false, prefetcher);
  }

  void add(const QueryTile& tile, int64_t start, const KeyRange& seen, const TileRows& keys,
           Prefetcher& prefetcher) {
    constexpr int kWidth = F32::kWidth;
    const int rows = static_cast<int>(tile.num_rows());
    const int first = static_cast<int>(seen.begin > start ? seen.begin - start : 0) / kWidth;
    const int last =
        static_cast<int>((seen.end - start < kKeyTile ? seen.end - start : kKeyTile) + kWidth - 1) /
        kWidth;
    if (rows <= kMaxBlockRows) {
      // One pass over kt, in two parts if all of it would evict other data from L1.
      const RowView block = view_of(p, tile, start, s_.position[0], s_.position[rows - 1]);
      const int step =
          (p.head_dim * kKeyTile > kSinglePassKtFloats ? kKeyTile / 2 : kKeyTile) / kWidth;
      for (int part = 0; part < kKeyTile / kWidth; part += step) {
        RowView view = block;
        if (view.first < part) view.first = part;
        if (view.last > part + step) view.last = part + step;
        if (view.first >= view.last) continue;
        for (int v = view.first; v < view.last; ++v) {
          transpose_rows<T>(keys.k + v * kWidth, p.head_dim, s_.kt + (v - part) * kWidth,
                            step * kWidth, prefetcher);
        }
        score(0, rows, view, part, step * kWidth, prefetcher);
      }
    } else {
      for (int v = first; v < last; ++v) {
        transpose_rows<T>(keys.k + v * kWidth, p.head_dim, s_.kt + v * kWidth, kKeyTile,
                          prefetcher);
      }
    }
    const bool widen_v =
        (rows > kRowsWorthWideningV && sizeof(T) < sizeof(float)) || p.head_dim != width_;
    if (widen_v) {
      for (int j = first * kWidth; j < last * kWidth; ++j) {
        const T* v = reinterpret_cast<const T*>(keys.v[j]);
        float* to = s_.v + j * width_;
        for_each_vector(p.head_dim, [&](int64_t i, int n) { store(to + i, load_n(v + i, n)); });
        for (int64_t i = round_up(p.head_dim, kWidth); i < width_; i += kWidth)
          store(to + i, F32());
      }
    }
    const ScoreRule rule{
        .softmax_scale = p.softmax_scale,
        .soft_cap = p.soft_cap,
        .k_scale = p.k_scale != nullptr ? keys.k_scale : nullptr,
        .v_scale = p.v_scale != nullptr ? keys.v_scale : nullptr,
    };
    for (int row = 0; row < rows; row += kMaxBlockRows) {
      const int count = rows - row < kMaxBlockRows ? rows - row : kMaxBlockRows;
      const RowView block = view_of(p, tile, start, s_.position[row], s_.position[row + count - 1]);
      if (block.begin >= block.end) continue;
      if (rows > kMaxBlockRows) score(row, count, block, 0, kKeyTile, prefetcher);
      float* scores = s_.scores + row * kKeyTile;
      float* acc = s_.acc + row * width_;
      for (int r = 0; r < count; ++r) {
        RowView view = view_of(p, tile, start, s_.position[row + r], s_.position[row + r]);
        view.first = block.first;
        view.last = block.last;
        update_state(scores + r * kKeyTile, view, rule, s_.m + row + r, s_.l + (row + r) * 16,
                     acc + r * width_, width_);
      }
      const Depth depth_v{block.first * kWidth, block.end};
      const int vectors = static_cast<int>(width_ / kWidth);
      if (widen_v) {
        multiply(count, scores, kKeyTile, StridedRows<float>{s_.v, width_}, depth_v, vectors, acc,
                 width_, true, prefetcher);
      } else {
        multiply(count, scores, kKeyTile, PointerRows<T>{keys.v}, depth_v, vectors, acc, width_,
                 true, prefetcher);
      }
    }
  }

  const PagedAttentionParams& p;
  const Scratch& s_;
  const int64_t width_;
};

}  // namespace lampo::cpu::LAMPO_ISA
