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
// the FMA rate. Where the CPU has dot products of BF16 pairs and both sides fit BF16 exactly, step
// 2 uses them: half the instructions and half of kt, nothing lost. Step 4 stays in f32: weights
// rounded to BF16 would cost accuracy.
//
// Measured on one core of a shared 2-core AMD EPYC (Zen 4: 117 GFLOP/s f32 at 3.7 GHz; this core
// alone reads 100 GB/s from L3 and 31-35 GB/s from memory), bf16, pages of 16, AVX-512:
//   prefill, causal: 9/3 heads of 64, 2048 tokens 87 GFLOP/s; 32/8 of 128, 1024 tokens 99
//   decode, 9/3 heads of 64: 200 tokens in cache 8 us, 2000 tokens 76 us (20 GB/s)
//   decode, 32/8 of 128, 16384 tokens from memory 4.6 ms (14.6 GB/s), 32/32 20 GB/s; the products
//   alone, from L1, would take 2.7 ms
// Tried for the memory-bound case, same machine: no prefetching 10.1 ms; prefetching into L1 in
// bursts of 128 lines 11.2, line by line 7.4; into L2 (more misses in flight) 4.6. Splits of 128,
// 256, 512 tokens differ by 2 % each; 128 shares a short context best among threads.
#include "common/dispatch.h"
#include "cpu/attention_plan.h"
#include "cpu/kernel_table.h"
#include "cpu/key_tile.h"
#include "cpu/matmul_block.h"
#include "cpu/online_softmax.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// More rows than this use V often enough to pay for a widened copy.
constexpr int kRowsWorthWideningV = 2 * kMaxBlockRows;
/// One register block of rows passes once over kt, which then should leave room in L1.
constexpr int64_t kSinglePassKtFloats = 4096;

/// One thread's part of the workspace.
struct Scratch {
  float* q;        // [kMaxRows, width]
  float* kt;       // [width, kKeyTile]
  float* v;        // [kKeyTile, width]
  float* acc;      // [kMaxRows, width], of the split
  float* run_acc;  // [kMaxRows, width], of the splits so far
  float* scores;   // [kMaxRows, kKeyTile]
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
    l = take(kMaxRows * 16);
    m = take(kMaxRows);
    run_m = take(kMaxRows);
    run_l = take(kMaxRows);
  }
};

/// A split of a query tile: what a thread computes at a time.
struct Item {
  QueryTile tile;
  int64_t split;
  KeyRange keys;   // of the split, within the tile's; empty where the tile sees no key
  float* partial;  // where the state goes; null: it is folded into the running one
  bool first, last;

  int64_t first_key_tile() const { return keys.begin / kKeyTile * kKeyTile; }
};

/// kPairs: scores come from dot_bf16 on BF16 queries and keys, which lose nothing by it.
template <class T, bool kPairs>
class Attention {
 public:
  Attention(const PagedAttentionParams& params, const Team& team)
      : p(params),
        width_(padded_head_dim(params.head_dim)),
        group_size_(params.num_qo_heads / params.num_kv_heads),
        s_(static_cast<float*>(params.workspace) + team.rank * scratch_floats(params.head_dim),
           width_) {}

  /// Computes an item; the caller knows what comes next, whose keys can be asked for.
  void run(const Item& item, const Item* next) {
    if (item.first) begin_tile(item.tile);
    if (item.keys.begin < item.keys.end) run_split(item, next);
    if (item.partial != nullptr) {
      store_split(item.partial);
    } else {
      if (item.keys.begin < item.keys.end) fold_split();
      if (item.last) write_rows([](int) { return true; });
    }
  }

  /// Folds the stored states of the rows for which wanted(row), and writes them.
  template <class Wanted>
  void merge(const QueryTile& tile, const float* partials, int64_t split_floats, Wanted&& wanted) {
    begin_tile(tile);
    for (int row = 0; row < tile.num_rows(); ++row) {
      if (!wanted(row)) continue;
      for (int64_t split = 0; split < tile.num_splits(); ++split) {
        const float* from = partials + split * split_floats + row * partial_floats(p.head_dim);
        fold_state(s_.run_m + row, s_.run_l + row, s_.run_acc + row * width_, from[width_],
                   from[width_ + 1], from, width_);
      }
    }
    write_rows(wanted);
  }

 private:
  /// Queries as the products want them, empty running states.
  void begin_tile(const QueryTile& tile) {
    tile_ = tile;
    dispatch_dtype<float, BF16>(p.dtype, [&]<class Q>() {
      for_each_row([&](int row, int64_t token, int64_t head) {
        const Q* q = static_cast<const Q*>(p.q) + token * p.stride_q_token + head * p.stride_q_head;
        float* to = s_.q + row * width_;
        if constexpr (kPairs) {
          memcpy(to, q, static_cast<size_t>(p.head_dim) * sizeof(Q));
        } else {
          for_each_vector(p.head_dim, [&](int64_t i, int n) { store(to + i, load_n(q + i, n)); });
        }
      });
    });
    for (int row = 0; row < tile_.num_rows(); ++row) {
      s_.run_m[row] = kMinusInfinity;
      s_.run_l[row] = 0.0f;
    }
    clear(s_.run_acc);
  }

  /// Computes the states of one split into the scratch.
  void run_split(const Item& item, const Item* next) {
    const int rows = static_cast<int>(tile_.num_rows());
    for (int row = 0; row < rows; ++row) {
      s_.m[row] = kMinusInfinity;
      store(s_.l + row * 16, F32());
    }
    clear(s_.acc);
    int64_t start = item.first_key_tile();
    if (!found_) find_rows(p, tile_, item.keys, start, *current_);
    for (; start < item.keys.end; start += kKeyTile) {
      Prefetcher prefetcher;
      const bool more = start + kKeyTile < item.keys.end;
      found_ = more || (next != nullptr && next->keys.begin < next->keys.end);
      if (found_) {
        const Item& coming = more ? item : *next;
        find_rows(p, coming.tile, coming.keys, more ? start + kKeyTile : next->first_key_tile(),
                  *next_);
        prefetcher.row = next_->k;
        prefetcher.end = next_->v + kKeyTile;
        prefetcher.bytes = p.head_dim * static_cast<int64_t>(sizeof(T));
      }
      run_key_tile(start, item.keys, *current_, prefetcher);
      while (prefetcher.row != prefetcher.end) prefetcher.step();
      TileRows* const done = current_;
      current_ = next_;
      next_ = done;
    }
    for (int row = 0; row < rows; ++row) {
      s_.l[row * 16] = reduce_add(load(s_.l + row * 16));
    }
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

  void clear(float* rows) const {
    for (int64_t i = 0; i < tile_.num_rows() * width_; i += F32::kWidth) store(rows + i, F32());
  }

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

  /// The part of the tile's keys that the rows [row_first, row_last] see.
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

  /// Scores of some rows with the keys [16 * first, ...) of the tile that kt holds.
  void score(int row, int count, const RowView& block, int kt_first, int64_t kt_stride,
             Prefetcher& prefetcher) {
    const Depth depth{0, static_cast<int>(kPairs ? p.head_dim / 2 : p.head_dim)};
    const float* kt = s_.kt + (block.first - kt_first) * F32::kWidth;
    float* to = s_.scores + row * kKeyTile + block.first * F32::kWidth;
    using Rows = std::conditional_t<kPairs, PairRows, StridedRows<float>>;
    multiply(count, s_.q + row * width_, width_, Rows{kt, kt_stride}, depth,
             block.last - block.first, to, kKeyTile, false, prefetcher);
  }

  void run_key_tile(int64_t start, const KeyRange& seen, const TileRows& keys,
                    Prefetcher& prefetcher) {
    constexpr int kWidth = F32::kWidth;
    const int rows = static_cast<int>(tile_.num_rows());
    const int first = static_cast<int>(seen.begin > start ? seen.begin - start : 0) / kWidth;
    const int last =
        static_cast<int>((seen.end - start < kKeyTile ? seen.end - start : kKeyTile) + kWidth - 1) /
        kWidth;
    const int64_t depth = kPairs ? p.head_dim / 2 : p.head_dim;
    if (rows <= kMaxBlockRows) {
      // One pass over kt: in two parts where all of it would push other things out of L1.
      const RowView block = view_of_rows(start, 0, rows - 1);
      const int step = (depth * kKeyTile > kSinglePassKtFloats ? kKeyTile / 2 : kKeyTile) / kWidth;
      for (int part = 0; part < kKeyTile / kWidth; part += step) {
        RowView view = block;
        if (view.first < part) view.first = part;
        if (view.last > part + step) view.last = part + step;
        if (view.first >= view.last) continue;
        for (int v = view.first; v < view.last; ++v) {
          transpose_rows<T, kPairs>(keys.k + v * kWidth, p.head_dim, s_.kt + (v - part) * kWidth,
                                    step * kWidth, prefetcher);
        }
        score(0, rows, view, part, step * kWidth, prefetcher);
      }
    } else {
      for (int v = first; v < last; ++v) {
        transpose_rows<T, kPairs>(keys.k + v * kWidth, p.head_dim, s_.kt + v * kWidth, kKeyTile,
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
      const RowView block = view_of_rows(start, row, row + count - 1);
      if (block.begin >= block.end) continue;
      if (rows > kMaxBlockRows) score(row, count, block, 0, kKeyTile, prefetcher);
      float* scores = s_.scores + row * kKeyTile;
      float* acc = s_.acc + row * width_;
      for (int r = 0; r < count; ++r) {
        RowView view = view_of_rows(start, row + r, row + r);
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
  const int64_t width_;
  const int64_t group_size_;
  Scratch s_;
  QueryTile tile_;
  TileRows buffers_[2];
  TileRows* current_ = &buffers_[0];
  TileRows* next_ = &buffers_[1];
  bool found_ = false;  // current_ holds the first key tile of the item that comes next
};

/// A tile whose splits several threads compute: this thread is one of [first, last].
struct Straddling {
  QueryTile tile;
  float* partials;
  int first, last;
};

template <class T, bool kPairs>
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

  Attention<T, kPairs> attention(p, team);
  Item items[2];  // one is held back until the next is known
  int num_items = 0;
  const auto run_held = [&](const Item* next) {
    if (num_items > 0) attention.run(items[(num_items - 1) % 2], next);
  };
  Straddling straddling[2];  // a thread's run can only straddle at its two ends
  int num_straddling = 0;
  int64_t cost = 0;
  const auto take_tile = [&](const QueryTile& tile) {
    const int64_t begin = cost;
    cost += cost_of(tile);
    if (owner(begin) > team.rank || owner(cost - 1) < team.rank) return;
    const int64_t first_split = tile.first_split();
    const int64_t num_splits = tile.num_splits();
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
    float* slot = first == last ? nullptr : partials + first * max_splits * split_floats;
    if (slot != nullptr) straddling[num_straddling++] = {tile, slot, first, last};
    bool is_first = true;
    for (int64_t i = 0; i == 0 || i < num_splits; ++i) {
      const int64_t split = first_split + i;
      if (slot != nullptr && split_owner(split) != team.rank) continue;
      Item& item = items[num_items % 2];
      item = {.tile = tile,
              .split = split,
              .keys = tile.keys_of_split(split),
              .partial = slot != nullptr ? slot + i * split_floats : nullptr,
              .first = is_first,
              .last = i + 1 >= num_splits};
      is_first = false;
      run_held(&item);
      ++num_items;
    }
  };
  for (int64_t seq = 0; seq < p.batch_size; ++seq) {
    for (int64_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
      for_each_query_tile(p, seq, tile_rows, [&](QueryTile tile) {
        tile.kv_head = kv_head;
        take_tile(tile);
      });
    }
  }
  run_held(nullptr);
  team.sync();
  for (int i = 0; i < num_straddling; ++i) {
    const Straddling& s = straddling[i];
    attention.merge(s.tile, s.partials, split_floats,
                    [&](int row) { return s.first + row % (s.last - s.first + 1) == team.rank; });
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
  dispatch_dtype<float, F16, BF16, F8E4M3, int8_t>(p.cache_dtype, [&]<class T>() {
    // What a BF16 holds exactly.
    constexpr bool kFitsBF16 = std::is_same_v<T, BF16> || sizeof(T) == 1;
    if constexpr (kHasDotBF16 && kFitsBF16) {
      if (p.dtype == DType::kBF16) return run<T, true>(p, team);
    }
    run<T, false>(p, team);
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
