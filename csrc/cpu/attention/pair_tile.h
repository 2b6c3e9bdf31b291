// SPDX-License-Identifier: Apache-2.0
// A key tile by products of pairs of 16-bit numbers (vec/pairs.h): twice the rate of f32, on the
// cache's numbers as they are stored. Queries and, for the product with V, softmax weights are
// rounded: to BF16, like the cache, or for int8 caches to 16 bits relative to the largest of a row.
// Sums, maxima and the softmax are f32; lse sums the weights before they are rounded.
//
// A pair of K is two neighbours in a row. A pair of V is two neighbouring keys at one column; lanes
// are columns, in the order that interleaving two rows gives.
// A score is the sum of eight chains of products, over the units 0, 8, 16 ..., 1, 9 ... of a row.
//   - Few rows: lanes are the chains of two keys, added by shuffles. V is interleaved in registers,
//     so one pass over the cache serves all rows.
//   - Many rows: K is transposed and V interleaved into the scratch; lanes are keys, then columns.
// An element is the same sums in the same order in both, so the results are the same bits.
#pragma once

#include "cpu/attention/key_tile.h"
#include "cpu/attention/online_softmax.h"
#include "cpu/vec/pairs.h"

namespace lampo::cpu::LAMPO_ISA {

/// Largest number of rows that is computed without scratch copies of K and V.
static constexpr int kFewRows = 8;
/// Largest number of rows with sums in registers.
static constexpr int kMostRows = 6;
static constexpr int kTileVectors = kKeyTile / F32::kWidth;
static constexpr float kLog2E = 1.44269504089f;

/// Calls fn.template operator()<n>() for 1 <= n <= kMostRows.
template <class Fn>
static inline void with_rows(int n, Fn&& fn) {
  switch (n) {
    case 1:
      return fn.template operator()<1>();
    case 2:
      return fn.template operator()<2>();
    case 3:
      return fn.template operator()<3>();
    case 4:
      return fn.template operator()<4>();
    case 5:
      return fn.template operator()<5>();
    default:
      return fn.template operator()<6>();
  }
}

/// Scores of kRows queries with 16 keys of `bytes` bytes; prefetches `next`.
template <class T, int kRows>
__attribute__((noinline)) static void score_keys(const char* const* keys, const char* const* next,
                                                 int64_t bytes, const float* q, int64_t stride_q,
                                                 float* scores) {
  using P = Pairs<T>;
  constexpr int kChains = kRows <= 3 ? 8 : 4;  // key pairs with sums in registers
  F32 sums[kRows][8];
#pragma GCC unroll 2
  for (int first = 0; first < 8; first += kChains) {
    F32 part[kRows][kChains];
    const auto add = [&]<bool kMasked>(int64_t at, int count) {
      const float* pairs = q + at / 4 * P::kPerUnit;
      F32 pairs_of_row[kRows][P::kPerUnit];
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int i = 0; i < P::kPerUnit; ++i) {
          pairs_of_row[r][i] = P::load_twice(pairs + r * stride_q + 8 * i);
        }
      }
      // `at` steps by half a line: lines of one half of the next rows are prefetched at even steps,
      // those of the other half at odd steps.
      const char* const* next_half = next + (at & 32) / 8;
      const int64_t line = at & ~int64_t{63};
#pragma GCC unroll 8
      for (int j = 0; j < kChains; ++j) {
        const int key = P::key_of(first + j);
        prefetch(next_half[key] + line);
        const Units units =
            P::template load_units<kMasked>(keys[key] + at, keys[key + 4] + at, count);
        const F32 even = P::template of<0>(units);
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) part[r][j] = P::dot(pairs_of_row[r][0], even, part[r][j]);
        if constexpr (P::kPerUnit == 2) {
          const F32 odd = P::template of<1>(units);
#pragma GCC unroll 6
          for (int r = 0; r < kRows; ++r) part[r][j] = P::dot(pairs_of_row[r][1], odd, part[r][j]);
        }
      }
    };
    int64_t at = 0;
    for (; at + 32 <= bytes; at += 32) add.template operator()<false>(at, 8);
    if (at < bytes) add.template operator()<true>(at, static_cast<int>(bytes - at) / 4);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < kChains; ++j) sums[r][first + j] = part[r][j];
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) store(scores + r * kKeyTile, P::template add_lanes<P>(sums[r]));
}

/// Factors of a row's update by a key tile: acc = acc * keep + sums * weight.
struct Update {
  float keep;
  float weight;  // integer sums only
};

/// acc of kRows rows += weights times the values of the key pairs [pairs.begin, pairs.end);
/// prefetches `next`.
template <class T, int kRows>
__attribute__((noinline)) static void add_values(const char* const* values, const char* const* next,
                                                 int64_t bytes, Depth pairs, const float* weights,
                                                 const Update* updates, float* acc, int64_t width) {
  using P = Pairs<T>;
  constexpr int kVectors = 2 * P::kPerUnit;
  for (int64_t at = 0; at < bytes; at += 64, acc += kVectors * F32::kWidth) {
    F32 sums[kRows][kVectors];
    if constexpr (!P::kInteger) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = load(acc + r * width + v * F32::kWidth) * F32(updates[r].keep);
        }
      }
    }
    for (int k = pairs.begin; k < pairs.end; ++k) {
      prefetch(next[2 * k] + at);
      prefetch(next[2 * k + 1] + at);
      Units units[2];
      P::interleave(values[2 * k] + at, values[2 * k + 1] + at, bytes - at, &units[0], &units[1]);
      F32 columns[kVectors];
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        columns[u * P::kPerUnit] = P::template of<0>(units[u]);
        if constexpr (P::kPerUnit == 2) columns[2 * u + 1] = P::template of<1>(units[u]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F32 weight(weights[r * kKeyTile + k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = P::dot(weight, columns[v], sums[r][v]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* to = acc + r * width + v * F32::kWidth;
        if constexpr (P::kInteger) {
          const F32 kept = load(to) * F32(updates[r].keep);
          store(to, fma(P::to_float(sums[r][v]), F32(updates[r].weight), kept));
        } else {
          store(to, sums[r][v]);
        }
      }
    }
  }
}

/// Scores of kRows queries with kVectors * 16 keys, from kt [8 chains, steps, kKeyTile].
template <class T, int kRows, int kVectors>
__attribute__((noinline)) static void score_block(const float* q, int64_t stride_q, const float* kt,
                                                  int steps, float* scores) {
  using P = Pairs<T>;
  using Sums = F32[kRows][kVectors];
  const auto add_chain = [&](Sums& sums) {
#pragma GCC unroll 4
    for (int step = 0; step < steps; ++step, kt += kKeyTile) {
      F32 values[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) values[v] = in_register(load(kt + v * F32::kWidth));
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const F32 factor(q[r * stride_q + 8 * step]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[r][v] = P::dot(factor, values[v], sums[r][v]);
      }
    }
    ++q;
  };
  Sums totals;
  add_chain(totals);
  for (int chain = 1; chain < 8; ++chain) {
    Sums sums;
    add_chain(sums);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) totals[r][v] = P::plus(totals[r][v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      store(scores + r * kKeyTile + v * F32::kWidth, totals[r][v]);
    }
  }
}

/// As add_values, for kVectors of the columns of v [32 pairs, width], interleaved values. is_first:
/// acc counts as 0, whatever it holds.
template <class T, int kRows, int kVectors>
__attribute__((noinline)) static void add_block(const float* v, int64_t width, Depth pairs,
                                                const float* weights, const Update* updates,
                                                bool is_first, float* acc) {
  using P = Pairs<T>;
  F32 sums[kRows][kVectors];
  if (!P::kInteger && !is_first) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        sums[r][i] = load(acc + r * width + i * F32::kWidth) * F32(updates[r].keep);
      }
    }
  }
  for (int k = pairs.begin; k < pairs.end; ++k) {
    F32 columns[kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      columns[i] = in_register(load(v + k * width + i * F32::kWidth));
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const F32 weight(weights[r * kKeyTile + k]);
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) sums[r][i] = P::dot(weight, columns[i], sums[r][i]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      float* to = acc + r * width + i * F32::kWidth;
      if constexpr (P::kInteger) {
        const F32 kept = is_first ? F32() : load(to) * F32(updates[r].keep);
        store(to, fma(P::to_float(sums[r][i]), F32(updates[r].weight), kept));
      } else {
        store(to, sums[r][i]);
      }
    }
  }
}

template <class T>
class PairTile {
  using P = Pairs<T>;
  static constexpr int kWidth = F32::kWidth;

 public:
  PairTile(const PagedAttentionParams& params, const Scratch& scratch)
      : p(params),
        s_(scratch),
        bytes_(params.head_dim * static_cast<int64_t>(sizeof(T))),
        width_(round_up(bytes_, 64) / static_cast<int64_t>(sizeof(T))) {}

  int64_t width() const { return width_; }

  template <class Q>
  void load_query(int row, const Q* q) {
    const float scale = P::store_query(s_.q + row * width_, q, p.head_dim, width_);
    s_.q_scale[row] = scale;
    s_.factor[row] = factor_of(scale);
  }

  void run(const QueryTile& tile, int64_t start, const KeyRange&, const TileRows& keys,
           const TileRows* next, bool first) {
    const int rows = static_cast<int>(tile.num_rows());
    const RowView seen = view_of(p, tile, start, s_.position[0], s_.position[rows - 1]);
    if (rows <= kFewRows) {
      if (first) clear(0, rows);
      if (seen.begin >= seen.end) return;
      run_few(tile, start, seen, rows, keys, next != nullptr ? *next : keys);
    } else {
      run_many(tile, start, seen, rows, keys, first);
    }
  }

  void finish(int rows) const {
    for (int row = 0; row < rows; ++row) {
      s_.l[row * 16] = reduce_add(load(s_.l + row * 16));
      s_.m[row] *= 1.0f / kLog2E;
    }
  }

  void restore(float* acc) const {
    constexpr int64_t kChunk = 64 / sizeof(T);
    for (int64_t i = 0; i < width_; i += kChunk) P::restore(acc + i);
  }

 private:
  void run_few(const QueryTile& tile, int64_t start, const RowView& seen, int rows,
               const TileRows& keys, const TileRows& next) {
    const int most = rows <= kMostRows ? rows : (rows + 1) / 2;
    for (int row = 0; row < rows; row += most) {
      with_rows(row + most < rows ? most : rows - row, [&]<int kRows>() {
        for (int v = seen.first; v < seen.last; ++v) {
          score_keys<T, kRows>(keys.k + v * kWidth, next.k + v * kWidth, bytes_,
                               s_.q + row * width_, width_,
                               s_.scores + row * kKeyTile + v * kWidth);
        }
      });
    }
    Update updates[kFewRows];
    update_rows(tile, start, 0, rows, keys, updates);
    for (int row = 0; row < rows; row += most) {
      with_rows(row + most < rows ? most : rows - row, [&]<int kRows>() {
        add_values<T, kRows>(keys.v, next.v, bytes_, pairs_of(seen), s_.scores + row * kKeyTile,
                             updates + row, s_.acc + row * width_, width_);
      });
    }
  }

  void run_many(const QueryTile& tile, int64_t start, const RowView& seen, int rows,
                const TileRows& keys, bool first) {
    for (int v = seen.first; v < seen.last; ++v) {
      transpose(keys.k + v * kWidth, s_.kt + v * kWidth);
    }
    const Depth pairs = pairs_of(seen);
    for (int k = pairs.begin; k < pairs.end; ++k) {
      interleave_values(keys.v[2 * k], keys.v[2 * k + 1], s_.v + k * width_);
    }
    for (int row = 0; row < rows; row += kMostRows) {
      const int count = rows - row < kMostRows ? rows - row : kMostRows;
      const RowView block = view_of(p, tile, start, s_.position[row], s_.position[row + count - 1]);
      if (block.begin >= block.end) {
        if (first) clear(row, count);
        continue;
      }
      score_rows(row, count, block);
      Update updates[kMostRows];
      update_rows(tile, start, row, count, keys, updates);
      with_rows(count, [&]<int kRows>() {
        float* acc = s_.acc + row * width_;
        const Depth seen_pairs = pairs_of(block);
        int64_t i = 0;
        for (; i + 4 * kWidth <= width_; i += 4 * kWidth) {
          add_block<T, kRows, 4>(s_.v + i, width_, seen_pairs, s_.scores, updates, first, acc + i);
        }
        for (; i < width_; i += 2 * kWidth) {
          add_block<T, kRows, 2>(s_.v + i, width_, seen_pairs, s_.scores, updates, first, acc + i);
        }
      });
    }
  }

  void clear(int row, int count) const {
    float* acc = s_.acc + row * width_;
    for (int64_t i = 0; i < count * width_; i += kWidth) store(acc + i, F32());
  }

  static Depth pairs_of(const RowView& view) { return {view.begin / 2, (view.end + 1) / 2}; }

  /// Number of pairs of a row in one chain.
  int steps() const { return static_cast<int>((bytes_ + 31) / 32) * P::kPerUnit; }

  void score_rows(int row, int count, const RowView& block) const {
    with_rows(count, [&]<int kRows>() {
      int v = block.first;
      const auto run = [&]<int kVectors>() {
        score_block<T, kRows, kVectors>(s_.q + row * width_, width_, s_.kt + v * kWidth, steps(),
                                        s_.scores + v * kWidth);
        v += kVectors;
      };
      while (v + 2 <= block.last) run.template operator()<2>();
      if (v < block.last) run.template operator()<1>();
    });
  }

  void transpose(const char* const* rows, float* kt) const {
    for (int64_t at = 0; at < round_up(bytes_, 32); at += 16) {
      Units units[4];
      P::load_transposed(rows, at, bytes_ - at, units);
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const int64_t chain = at / 4 % 8 + u, step = at / 32 * P::kPerUnit;
        float* to = kt + (chain * steps() + step) * kKeyTile;
        store(to, P::template of<0>(units[u]));
        if constexpr (P::kPerUnit == 2) store(to + kKeyTile, P::template of<1>(units[u]));
      }
    }
  }

  void interleave_values(const char* a, const char* b, float* to) const {
    for (int64_t at = 0; at < bytes_; at += 64) {
      Units units[2];
      P::interleave(a + at, b + at, bytes_ - at, &units[0], &units[1]);
      for (int u = 0; u < 2; ++u, to += P::kPerUnit * kWidth) {
        store(to, P::template of<0>(units[u]));
        if constexpr (P::kPerUnit == 2) store(to + kWidth, P::template of<1>(units[u]));
      }
    }
  }

  /// Turns the products of some rows with a key tile, s_.scores, into weights as pairs; updates m
  /// and l. All maxima come first: their exponentials then take one vector.
  void update_rows(const QueryTile& tile, int64_t start, int row, int count, const TileRows& keys,
                   Update* updates) const {
    const int64_t* position = s_.position + row;
    const RowView first = view_of(p, tile, start, position[0], position[0]);
    const RowView last = view_of(p, tile, start, position[count - 1], position[count - 1]);
    const bool masked = last.begin > 0 || first.end < kKeyTile;
    const bool plain = p.k_scale == nullptr && p.soft_cap == 0.0f && p.softmax_scale > 0.0f;
    alignas(64) float maxima[kWidth], shifts[kWidth], keeps[kWidth];
    for (int r = 0; r < count; ++r) {
      float* scores = s_.scores + r * kKeyTile;
      F32 x[kTileVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) x[v] = P::to_float(load(scores + v * kWidth));
      if (!plain) transform(x, keys, s_.q_scale[row + r]);
      if (masked) hide(x, view_of(p, tile, start, position[r], position[r]));
      if (P::kInteger || masked || !plain) {
#pragma GCC unroll 4
        for (int v = 0; v < kTileVectors; ++v) store(scores + v * kWidth, x[v]);
      }
      maxima[r] = reduce_max(max(max(x[0], x[1]), max(x[2], x[3])));
    }
    const F32 factors = load_n(s_.factor + row, count);
    const F32 old_m = load_n(s_.m + row, count);
    // NaN as the first operand leaves m unchanged.
    const F32 new_m = max(load_n(maxima, count) * factors, old_m);
    const F32 shift = select_less(F32(kMinusInfinity), new_m, new_m, F32());
    store_n(s_.m + row, new_m, count);
    store(shifts, shift);
    store(keeps, P::exp2_nonpositive(old_m - shift));
    for (int r = 0; r < count; ++r) {
      float* scores = s_.scores + r * kKeyTile;
      float* l = s_.l + (row + r) * kWidth;
      const F32 factor(s_.factor[row + r]), minus_shift(-shifts[r]);
      F32 sum = load(l) * F32(keeps[r]);
      F32 x[kTileVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) {
        x[v] = P::exp2_nonpositive(fma(load(scores + v * kWidth), factor, minus_shift));
        sum = sum + x[v];
        if (p.v_scale != nullptr) x[v] = x[v] * load(keys.v_scale + v * kWidth);
      }
      store(l, sum);
      updates[r] = {keeps[r], P::store_weights(scores, x)};
    }
  }

  /// Factor from a transformed score to a base-2 exponent.
  float factor_of(float q_scale) const {
    if (p.soft_cap != 0.0f) return p.soft_cap * kLog2E;
    const float scale = p.softmax_scale < 0.0f ? -p.softmax_scale : p.softmax_scale;
    return scale == 0.0f ? 1.0f : scale * q_scale * kLog2E;
  }

  /// Scales and caps scores; the positive factor of factor_of() is left out.
  void transform(F32* x, const TileRows& keys, float q_scale) const {
    const float sign = p.softmax_scale > 0.0f ? 1.0f : p.softmax_scale < 0.0f ? -1.0f : 0.0f;
    const F32 inner(p.soft_cap != 0.0f ? p.softmax_scale * q_scale / p.soft_cap : sign);
    for (int v = 0; v < kTileVectors; ++v) {
      x[v] = x[v] * inner;
      if (p.k_scale != nullptr) x[v] = x[v] * load(keys.k_scale + v * kWidth);
      if (p.soft_cap != 0.0f) x[v] = tanh(x[v]);
    }
  }

  /// Sets the scores of invisible keys to -inf.
  static void hide(F32* x, const RowView& view) {
    static constexpr float kIndex[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const F32 begin(static_cast<float>(view.begin)), end(static_cast<float>(view.end));
    const F32 nothing(kMinusInfinity);
    for (int v = 0; v < kTileVectors; ++v) {
      const F32 index = load(kIndex) + F32(static_cast<float>(v * kWidth));
      x[v] = select_less(index, end, select_less(index, begin, nothing, x[v]), nothing);
    }
  }

  const PagedAttentionParams& p;
  const Scratch& s_;
  const int64_t bytes_;
  const int64_t width_;
};

}  // namespace lampo::cpu::LAMPO_ISA
