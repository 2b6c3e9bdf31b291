// SPDX-License-Identifier: Apache-2.0
// out = softmax(softmax_scale * q k^T + mask) v over a paged cache, ragged prefill and decode.
//
// q, out [num_tokens, num_qo_heads, head_dim]; k_cache, v_cache [num_pages, num_kv_heads,
// page_size, head_dim] in f32, f16, bf16, f8 or int8. All arithmetic is in f32.
//
// Work: attention_plan.h. A thread takes a query tile (up to 48 rows of one KV head's group) and
// walks its key tiles of 64 keys:
//   1. K: rows gathered through the page table, widened and transposed into kt [head_dim, 64];
//   2. scores [rows, 64] = q kt, lanes across keys: no horizontal sums;
//   3. the online softmax, row by row, in place (online_softmax.h);
//   4. acc [rows, head_dim] += p V, lanes across head_dim; few rows read V where it lies, many rows
//      a widened copy.
// Keys outside the visible range of the whole query tile are never touched: their rows point to
// zeros. Key tiles that no row sees are not visited.
//
// Bytes: the visible K and V once per query tile. FLOPs: 4 head_dim per row and visible key, and
// about 25 for the softmax. Decode is memory-bound up to groups of about 8 rows, prefill bound by
// the FMA rate.
#include "common/dispatch.h"
#include "cpu/attention_plan.h"
#include "cpu/kernel_table.h"
#include "cpu/matmul_block.h"
#include "cpu/online_softmax.h"
#include "cpu/vec/row.h"
#include "cpu/vec/units.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// More rows than this use V often enough to pay for a widened copy.
constexpr int kRowsWorthWideningV = 2 * kMaxBlockRows;

/// What keys that may not be touched point to: zeros of any type, head_dim long.
alignas(64) const float kZeroRow[256] = {};

/// One thread's part of the workspace.
struct Scratch {
  float* q;        // [kMaxRows, width]
  float* kt;       // [width, kKeyTile]
  float* v;        // [kKeyTile, width]
  float* acc;      // [kMaxRows, width], of the split
  float* run_acc;  // [kMaxRows, width], of the splits so far
  float* scores;   // [kMaxRows, kKeyTile]
  float* k_scale;  // [kKeyTile]
  float* v_scale;  // [kKeyTile]
  float* l;        // [kMaxRows, 16]
  float* m;        // [kMaxRows]
  float* run_m;    // [kMaxRows]
  float* run_l;    // [kMaxRows]

  Scratch(float* at, int64_t width) {
    const auto take = [&](int64_t count) {
      float* part = at;
      at += count;
      return part;
    };
    q = take(kMaxRows * width);
    kt = take(kKeyTile * width);
    v = take(kKeyTile * width);
    acc = take(kMaxRows * width);
    run_acc = take(kMaxRows * width);
    scores = take(kMaxRows * kKeyTile);
    k_scale = take(kKeyTile);
    v_scale = take(kKeyTile);
    l = take(kMaxRows * 16);
    m = take(kMaxRows);
    run_m = take(kMaxRows);
    run_l = take(kMaxRows);
  }
};

/// Where the K and V rows of one key tile are.
template <class T>
struct TileRows {
  const T* k[kKeyTile];
  const T* v[kKeyTile];
};

/// kt[i][j] = element i of row j, for kWidth rows.
template <class T>
void transpose_rows(const T* const* rows, int64_t head_dim, float* kt) {
  constexpr int kWidth = F32::kWidth;
  constexpr int kParts = 4 / static_cast<int>(sizeof(T));
  constexpr int kBlock = kWidth * kParts;
  const char* bytes[kWidth];
  for (int r = 0; r < kWidth; ++r) bytes[r] = reinterpret_cast<const char*>(rows[r]);
  const auto put = [&](const Units* units, int64_t first, int64_t count) {
#pragma GCC unroll 16
    for (int u = 0; u < kWidth; ++u) {
      if (u * kParts >= count) break;
      float* to = kt + (first + u * kParts) * kKeyTile;
      store(to, widen<T, 0>(units[u]));
      if constexpr (kParts > 1) store(to + kKeyTile, widen<T, 1>(units[u]));
      if constexpr (kParts > 2) store(to + 2 * kKeyTile, widen<T, 2>(units[u]));
      if constexpr (kParts > 2) store(to + 3 * kKeyTile, widen<T, 3>(units[u]));
    }
  };
  int64_t i = 0;
  for (; i + kBlock <= head_dim; i += kBlock) {
    Units units[kWidth];
    load_transposed(bytes, i * static_cast<int64_t>(sizeof(T)), units);
    put(units, i, kBlock);
  }
  if (i < head_dim) {
    T tail[kWidth][kBlock] = {};
    const char* tails[kWidth];
    for (int r = 0; r < kWidth; ++r) {
      memcpy(tail[r], rows[r] + i, static_cast<size_t>(head_dim - i) * sizeof(T));
      tails[r] = reinterpret_cast<const char*>(tail[r]);
    }
    Units units[kWidth];
    load_transposed(tails, 0, units);
    put(units, i, head_dim - i);
  }
}

template <class T>
class Attention {
 public:
  Attention(const PagedAttentionParams& params, const Team& team)
      : p(params),
        width_(padded_head_dim(params.head_dim)),
        group_size_(params.num_qo_heads / params.num_kv_heads),
        s_(static_cast<float*>(params.workspace) + team.rank * scratch_floats(params.head_dim),
           width_) {}

  /// Prepares the rows of a tile: q in f32, empty running states.
  void begin_tile(const QueryTile& tile) {
    tile_ = tile;
    dispatch_dtype<float, BF16>(p.dtype, [&]<class Q>() {
      for_each_row([&](int row, int64_t token, int64_t head) {
        const Q* q = static_cast<const Q*>(p.q) + token * p.stride_q_token + head * p.stride_q_head;
        float* to = s_.q + row * width_;
        for_each_vector(p.head_dim, [&](int64_t i, int n) { store(to + i, load_n(q + i, n)); });
      });
    });
    for (int row = 0; row < tile_.num_rows(); ++row) {
      s_.run_m[row] = kMinusInfinity;
      s_.run_l[row] = 0.0f;
      // finish_state() reads it whatever the state.
      for (int64_t i = 0; i < width_; i += F32::kWidth) store(s_.run_acc + row * width_ + i, F32());
    }
  }

  /// Computes the states of one split into the scratch.
  void run_split(int64_t split) {
    const int rows = static_cast<int>(tile_.num_rows());
    for (int row = 0; row < rows; ++row) {
      s_.m[row] = kMinusInfinity;
      for (int i = 0; i < F32::kWidth; ++i) s_.l[row * 16 + i] = 0.0f;
    }
    for (int64_t i = 0; i < rows * width_; i += F32::kWidth) store(s_.acc + i, F32());
    const int64_t begin = split * kSplit > tile_.keys.begin ? split * kSplit : tile_.keys.begin;
    const int64_t end =
        (split + 1) * kSplit < tile_.keys.end ? (split + 1) * kSplit : tile_.keys.end;
    TileRows<T> buffers[2];
    TileRows<T>* current = &buffers[0];
    TileRows<T>* next = &buffers[1];
    int64_t start = begin / kKeyTile * kKeyTile;
    find_rows(start, begin, end, *current);
    for (; start < end; start += kKeyTile) {
      const bool more = start + kKeyTile < end;
      if (more) find_rows(start + kKeyTile, begin, end, *next);
      run_key_tile(start, begin, end, *current, more ? next : nullptr);
      TileRows<T>* const swap = current;
      current = next;
      next = swap;
    }
    for (int row = 0; row < rows; ++row)
      store_n(s_.l + row * 16, F32(reduce_add(load(s_.l + row * 16))), 1);
  }

  void fold_split() {
    for (int row = 0; row < tile_.num_rows(); ++row) {
      fold_state(s_.run_m + row, s_.run_l + row, s_.run_acc + row * width_, s_.m[row],
                 s_.l[row * 16], s_.acc + row * width_, width_);
    }
  }

  void store_split(float* partial) const {
    for (int row = 0; row < tile_.num_rows(); ++row) {
      float* to = partial + row * partial_floats(p.head_dim);
      for (int64_t i = 0; i < width_; i += F32::kWidth) {
        store(to + i, load(s_.acc + row * width_ + i));
      }
      to[width_] = s_.m[row];
      to[width_ + 1] = s_.l[row * 16];
    }
  }

  void fold_stored(int row, const float* partial) {
    const float* from = partial + row * partial_floats(p.head_dim);
    fold_state(s_.run_m + row, s_.run_l + row, s_.run_acc + row * width_, from[width_],
               from[width_ + 1], from, width_);
  }

  /// Writes the rows for which wanted(row).
  template <class Wanted>
  void write_rows(Wanted&& wanted) {
    dispatch_dtype<float, BF16>(p.dtype, [&]<class Q>() {
      for_each_row([&](int row, int64_t token, int64_t head) {
        if (!wanted(row)) return;
        float* acc = s_.run_acc + row * width_;
        const float lse = finish_state(s_.run_m[row], s_.run_l[row], acc,
                                       p.sinks != nullptr ? p.sinks + head : nullptr, width_);
        Q* out = static_cast<Q*>(p.out) + token * p.stride_out_token + head * p.stride_out_head;
        for_each_vector(p.head_dim, [&](int64_t i, int n) { store_n(out + i, load(acc + i), n); });
        if (p.lse != nullptr) p.lse[token * p.stride_lse_token + head] = lse;
      });
    });
  }

 private:
  /// fn(row in the tile, token in q, query head).
  template <class Fn>
  void for_each_row(Fn&& fn) const {
    int64_t token = tile_.first_token + tile_.row_begin / group_size_;
    int64_t head = tile_.row_begin % group_size_;
    for (int row = 0; row < tile_.num_rows(); ++row) {
      fn(row, token, tile_.kv_head * group_size_ + head);
      if (++head == group_size_) {
        head = 0;
        ++token;
      }
    }
  }

  /// The rows (and scales) of the keys of the tile at `start`; zeros outside [begin, end).
  void find_rows(int64_t start, int64_t begin, int64_t end, TileRows<T>& rows) const {
    const int64_t first = start > begin ? start : begin;
    const int64_t last = start + kKeyTile < end ? start + kKeyTile : end;
    const T* zeros = reinterpret_cast<const T*>(kZeroRow);
    for (int64_t j = 0; j < first - start; ++j) rows.k[j] = rows.v[j] = zeros;
    for (int64_t j = last - start; j < kKeyTile; ++j) rows.k[j] = rows.v[j] = zeros;
    const int32_t* pages = p.page_table + tile_.seq * p.stride_page_table_seq;
    const T* k_head = static_cast<const T*>(p.k_cache) + tile_.kv_head * p.stride_k_cache_head;
    const T* v_head = static_cast<const T*>(p.v_cache) + tile_.kv_head * p.stride_v_cache_head;
    for (int64_t key = first; key < last;) {
      const int64_t slot = key & (p.page_size - 1);
      const int64_t page = pages[key / p.page_size];
      const int64_t in_page = p.page_size - slot;
      const int64_t count = in_page < last - key ? in_page : last - key;
      const T* k = k_head + page * p.stride_k_cache_page + slot * p.stride_k_cache_slot;
      const T* v = v_head + page * p.stride_v_cache_page + slot * p.stride_v_cache_slot;
      for (int64_t j = 0; j < count; ++j) {
        rows.k[key - start + j] = k + j * p.stride_k_cache_slot;
        rows.v[key - start + j] = v + j * p.stride_v_cache_slot;
      }
      key += count;
    }
  }

  /// Scales of the keys of a tile, into the scratch.
  void gather_scales(int64_t start, int64_t begin, int64_t end, const float* scales, int64_t head,
                     int64_t page, int64_t slot, float* to) const {
    const int32_t* pages = p.page_table + tile_.seq * p.stride_page_table_seq;
    for (int64_t j = 0; j < kKeyTile; ++j) {
      const int64_t key = start + j;
      to[j] = key < begin || key >= end
                  ? 0.0f
                  : scales[pages[key / p.page_size] * page + tile_.kv_head * head +
                           (key & (p.page_size - 1)) * slot];
    }
  }

  /// The part of the tile's keys that the given rows see.
  RowView view_of_rows(int64_t start, int row_first, int row_last) const {
    const int64_t first = tile_.first_position + (tile_.row_begin + row_first) / group_size_;
    const int64_t last = tile_.first_position + (tile_.row_begin + row_last) / group_size_;
    const KeyRange a = visible_keys(p, first, tile_.seq_len);
    const KeyRange b = visible_keys(p, last, tile_.seq_len);
    RowView view;
    view.begin = static_cast<int>(a.begin > start ? a.begin - start : 0);
    view.end = static_cast<int>(b.end - start < kKeyTile ? b.end - start : kKeyTile);
    view.first = view.begin / F32::kWidth;
    view.last = (view.end + F32::kWidth - 1) / F32::kWidth;
    return view;
  }

  void run_key_tile(int64_t start, int64_t begin, int64_t end, const TileRows<T>& keys,
                    const TileRows<T>* next) {
    constexpr int kWidth = F32::kWidth;
    const int rows = static_cast<int>(tile_.num_rows());
    const int first = static_cast<int>(begin > start ? begin - start : 0) / kWidth;
    const int last =
        static_cast<int>((end - start < kKeyTile ? end - start : kKeyTile) + kWidth - 1) / kWidth;
    for (int v = first; v < last; ++v) {
      if (next != nullptr) prefetch_rows(*next, v * kWidth);
      transpose_rows(keys.k + v * kWidth, p.head_dim, s_.kt + v * kWidth);
    }
    const ScoreRule rule{
        .softmax_scale = p.softmax_scale,
        .soft_cap = p.soft_cap,
        .k_scale = p.k_scale != nullptr ? s_.k_scale : nullptr,
        .v_scale = p.v_scale != nullptr ? s_.v_scale : nullptr,
    };
    if (p.k_scale != nullptr) {
      gather_scales(start, begin, end, p.k_scale, p.stride_k_scale_head, p.stride_k_scale_page,
                    p.stride_k_scale_slot, s_.k_scale);
    }
    if (p.v_scale != nullptr) {
      gather_scales(start, begin, end, p.v_scale, p.stride_v_scale_head, p.stride_v_scale_page,
                    p.stride_v_scale_slot, s_.v_scale);
    }
    const bool widen_v = rows > kRowsWorthWideningV || p.head_dim != width_;
    if (widen_v) {
      for (int j = first * kWidth; j < last * kWidth; ++j) {
        float* to = s_.v + j * width_;
        for_each_vector(p.head_dim,
                        [&](int64_t i, int n) { store(to + i, load_n(keys.v[j] + i, n)); });
        for (int64_t i = round_up(p.head_dim, kWidth); i < width_; i += kWidth)
          store(to + i, F32());
      }
    }
    for (int row = 0; row < rows; row += kMaxBlockRows) {
      const int count = rows - row < kMaxBlockRows ? rows - row : kMaxBlockRows;
      const RowView block = view_of_rows(start, row, row + count - 1);
      if (block.begin >= block.end) continue;
      float* scores = s_.scores + row * kKeyTile;
      float* acc = s_.acc + row * width_;
      multiply(count, s_.q + row * width_, width_,
               StridedRows<float>{s_.kt + block.first * kWidth, kKeyTile},
               {0, static_cast<int>(p.head_dim)}, block.last - block.first,
               scores + block.first * kWidth, kKeyTile, false);
      for (int r = 0; r < count; ++r) {
        RowView view = view_of_rows(start, row + r, row + r);
        view.first = block.first;
        view.last = block.last;
        update_state(scores + r * kKeyTile, view, rule, s_.m + row + r, s_.l + (row + r) * 16,
                     acc + r * width_, width_);
      }
      const Depth depth{block.first * kWidth, block.end};
      const int vectors = static_cast<int>(width_ / kWidth);
      if (widen_v) {
        multiply(count, scores, kKeyTile, StridedRows<float>{s_.v, width_}, depth, vectors, acc,
                 width_, true);
      } else {
        multiply(count, scores, kKeyTile, PointerRows<T>{keys.v}, depth, vectors, acc, width_,
                 true);
      }
    }
  }

  /// kWidth rows of K and V from `first` on.
  void prefetch_rows(const TileRows<T>& rows, int first) const {
    const int64_t bytes = p.head_dim * static_cast<int64_t>(sizeof(T));
    for (int j = first; j < first + F32::kWidth; ++j) {
      for (int64_t at = 0; at < bytes; at += 64) {
        prefetch(reinterpret_cast<const char*>(rows.k[j]) + at);
        prefetch(reinterpret_cast<const char*>(rows.v[j]) + at);
      }
    }
  }

  const PagedAttentionParams& p;
  const int64_t width_;
  const int64_t group_size_;
  Scratch s_;
  QueryTile tile_;
};

/// A tile whose splits several threads compute: this thread is one of [first, last].
struct Straddling {
  QueryTile tile;
  float* partials;
  int first, last;
};

template <class T>
void run(const PagedAttentionParams& p, const Team& team) {
  const int64_t group_size = p.num_qo_heads / p.num_kv_heads;
  const int64_t tile_rows = choose_tile_rows(p, team.size);
  int64_t total = 0;
  for (int64_t seq = 0; seq < p.batch_size; ++seq) {
    for_each_query_tile(p, seq, tile_rows,
                        [&](const QueryTile& tile) { total += cost_of(tile) * p.num_kv_heads; });
  }
  const auto owner = [&](int64_t cost) {
    return total > 0 ? static_cast<int>(cost * team.size / total) : 0;
  };
  const int64_t split_floats = straddling_rows(group_size) * partial_floats(p.head_dim);
  const int64_t max_splits = round_up(p.max_pages_per_seq * p.page_size, kSplit) / kSplit;
  float* partials = static_cast<float*>(p.workspace) + team.size * scratch_floats(p.head_dim);

  Attention<T> attention(p, team);
  Straddling straddling[2];  // a thread's run can only straddle at its two ends
  int num_straddling = 0;
  int64_t cost = 0;
  const auto run_tile = [&](const QueryTile& tile) {
    const int64_t first_split = tile.first_split();
    const int64_t num_splits = tile.num_splits();
    const int64_t begin = cost;
    cost += cost_of(tile);
    if (owner(begin) > team.rank || owner(cost - 1) < team.rank) return;
    const auto split_owner = [&](int64_t split) {
      const int64_t before = cost_of_keys(tile, 0, split * kSplit);
      const int64_t itself = cost_of_keys(tile, split * kSplit, (split + 1) * kSplit);
      return owner(begin + before + itself / 2);
    };
    int first = owner((begin + cost) / 2);
    int last = first;
    if (num_splits > 1 && tile.num_rows() <= straddling_rows(group_size)) {
      first = split_owner(first_split);
      last = split_owner(first_split + num_splits - 1);
    }
    if (team.rank < first || team.rank > last) return;
    attention.begin_tile(tile);
    if (first == last) {
      for (int64_t split = 0; split < num_splits; ++split) {
        attention.run_split(first_split + split);
        attention.fold_split();
      }
      attention.write_rows([](int) { return true; });
      return;
    }
    float* slot = partials + first * max_splits * split_floats;
    for (int64_t split = 0; split < num_splits; ++split) {
      if (split_owner(first_split + split) != team.rank) continue;
      attention.run_split(first_split + split);
      attention.store_split(slot + split * split_floats);
    }
    straddling[num_straddling++] = {tile, slot, first, last};
  };
  for (int64_t seq = 0; seq < p.batch_size; ++seq) {
    for (int64_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
      for_each_query_tile(p, seq, tile_rows, [&](QueryTile tile) {
        tile.kv_head = kv_head;
        run_tile(tile);
      });
    }
  }
  team.sync();
  for (int i = 0; i < num_straddling; ++i) {
    const Straddling& s = straddling[i];
    const auto mine = [&](int row) { return s.first + row % (s.last - s.first + 1) == team.rank; };
    attention.begin_tile(s.tile);
    for (int row = 0; row < s.tile.num_rows(); ++row) {
      if (!mine(row)) continue;
      for (int64_t split = 0; split < s.tile.num_splits(); ++split) {
        attention.fold_stored(row, s.partials + split * split_floats);
      }
    }
    attention.write_rows(mine);
  }
}

/// Rows of out and lse that belong to no sequence.
void clear_padding(const PagedAttentionParams& p, const Team& team) {
  const int64_t used = p.cu_seqlens_q[p.batch_size];
  const Share share = share_of(p.num_tokens - used, team);
  dispatch_dtype<float, BF16>(p.dtype, [&]<class Q>() {
    for (int64_t token = used + share.begin; token < used + share.end; ++token) {
      for (int64_t head = 0; head < p.num_qo_heads; ++head) {
        Q* out = static_cast<Q*>(p.out) + token * p.stride_out_token + head * p.stride_out_head;
        for_each_vector(p.head_dim, [&](int64_t i, int n) { store_n(out + i, F32(), n); });
        if (p.lse != nullptr) p.lse[token * p.stride_lse_token + head] = kMinusInfinity;
      }
    }
  });
}

}  // namespace

void paged_attention(const PagedAttentionParams& p, const Team& team) {
  clear_padding(p, team);
  dispatch_dtype<float, F16, BF16, F8E4M3, int8_t>(p.cache_dtype,
                                                   [&]<class T>() { run<T>(p, team); });
}

}  // namespace lampo::cpu::LAMPO_ISA
