// SPDX-License-Identifier: Apache-2.0
// out = softmax(softmax_scale * q k^T + mask) v over a paged cache, ragged prefill and decode.
//
// q, out [num_tokens, num_qo_heads, head_dim]; k_cache, v_cache [num_pages, num_kv_heads,
// page_size, head_dim] in f32, f16, bf16, f8 or int8.
//
// Work: attention_plan.h. A thread takes a query tile (up to 96 rows of one KV head's group) and
// walks its key tiles of 64 keys: scores, online softmax, weights times V. A key tile is computed
//   - in f32 (float_tile.h): f32 and f16 caches, and all caches where the CPU has nothing better;
//   - by products of pairs of 16-bit numbers (pair_tile.h): bf16, f8 and int8 caches on AVX-512.
// Keys outside the visible range of the whole query tile are never touched: their rows point to
// zeros. Key tiles that no row sees are not visited. While a key tile is computed, the rows of the
// next are asked for, line by line.
//
// Bytes: the visible K and V once per query tile. FLOPs: 4 head_dim per row and visible key, and
// about 20 for the softmax. Decode is memory-bound up to groups of about 8 rows, prefill bound by
// the rate of products.
//
// Measured on a shared 2-core AMD EPYC (Zen 4, 3.7 GHz: 117 GFLOP/s f32 and 237 bf16 a core), best
// of several runs, one core, f32 queries, bf16 cache, pages of 16, AVX-512. Prefill: 2048 tokens,
// causal, 9/3 heads of 64. Decode: one token, 9/3 heads of 64, 2000 tokens in cache (from L3).
//                                                                     prefill GFLOP/s   decode us
//   everything in f32                                                          87              76
//   pairs; decode transposes K in registers, 16 keys a vector                 116              69
//   decode reads K as it lies, two keys a vector, eight chains to a score     108              47
//   prefill's eight chains summed in registers, not on the stack              124              47
//   6 x 2 vectors of scores a block, maxima of rows together, 96 rows a
//   query tile (48), splits of 256 keys (128)                                 144              44
//   accumulators begin as sums, not as stored zeros                           146              43
// 32/8 heads of 128: prefill of 1024 tokens 152 GFLOP/s (f32: 99); decode at 1000 tokens 115 us,
// which is 36 GB/s; int8 120 us, f8 207, f16 (in f32) 291. 9/3 heads of 64 at 200 tokens: 4.8 us
// (f32: 8). Two threads, caches that lie in memory: 52-82 % of what reading them in order reaches
// in the same run (9/3 heads of 64 at 7000 tokens, 32/8 of 128 at 4096 and 16384), 66-94 % of
// reading the same pages in the same order with the same prefetching and nothing else; int8 48-61
// %.
//
// Tried for caches in memory: prefetching into L1, non-temporally, or not at all takes 1.5 to 2.2
// times as long as into L2, which has more room for outstanding misses. Asking for lines in the
// order of their addresses 1.1 times (now every fourth of a page of heads of 128); for those of
// four pages in turn, KV heads that lie side by side in turn, or huge pages: no difference beyond
// the noise.
#include <utility>

#include "common/dispatch.h"
#include "cpu/attention_plan.h"
#include "cpu/float_tile.h"
#include "cpu/kernel_table.h"
#include "cpu/pair_tile.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// A split of a query tile: what a thread computes at a time.
struct Item {
  QueryTile tile;
  int64_t split;
  KeyRange keys;   // of the split, within the tile's; empty where the tile sees no key
  float* partial;  // where the state goes; null: it is folded into the running one
  bool first, last;

  int64_t first_key_tile() const { return keys.begin / kKeyTile * kKeyTile; }
};

/// Tile: how a key tile is computed, FloatTile or PairTile.
template <class Tile>
class Attention {
 public:
  Attention(const PagedAttentionParams& params, const Team& team)
      : p(params),
        group_size_(params.num_qo_heads / params.num_kv_heads),
        s_(static_cast<float*>(params.workspace) + team.rank * scratch_floats(params.head_dim),
           params.head_dim),
        key_tile_(params, s_),
        width_(key_tile_.width()) {}

  /// Computes an item; the caller knows what comes next, whose keys can be asked for.
  void run(const Item& item, const Item* next) {
    if (item.first) begin_tile(item.tile);
    if (item.keys.begin < item.keys.end) run_split(item, next);
    if (item.partial != nullptr) {
      store_split(item.partial);
    } else {
      if (item.keys.begin < item.keys.end) fold_split(item.first);
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
        s_.position[row] = tile_.first_position + token - tile_.first_token;
        key_tile_.load_query(
            row, static_cast<const Q*>(p.q) + token * p.stride_q_token + head * p.stride_q_head);
      });
    });
    for (int row = 0; row < tile_.num_rows(); ++row) {
      s_.run_m[row] = kMinusInfinity;
      s_.run_l[row] = 0.0f;
    }
  }

  /// Computes the states of one split into the scratch.
  void run_split(const Item& item, const Item* next) {
    const int rows = static_cast<int>(tile_.num_rows());
    for (int row = 0; row < rows; ++row) {
      s_.m[row] = kMinusInfinity;
      store(s_.l + row * 16, F32());
    }
    bool first = true;
    int64_t start = item.first_key_tile();
    if (!found_) find_rows(p, tile_, item.keys, start, *current_);
    for (; start < item.keys.end; start += kKeyTile) {
      const bool more = start + kKeyTile < item.keys.end;
      found_ = more || (next != nullptr && next->keys.begin < next->keys.end);
      if (found_) {
        const Item& coming = more ? item : *next;
        find_rows(p, coming.tile, coming.keys, more ? start + kKeyTile : next->first_key_tile(),
                  *next_);
      }
      find_scales(p, tile_, item.keys, start, *current_);
      key_tile_.run(tile_, start, item.keys, *current_, found_ ? next_ : nullptr, first);
      first = false;
      TileRows* const done = current_;
      current_ = next_;
      next_ = done;
    }
    key_tile_.finish(rows);
  }

  void fold_split(bool first) {
    if (first) std::swap(s_.acc, s_.run_acc);
    for (int row = 0; row < tile_.num_rows(); ++row) {
      if (first) {
        s_.run_m[row] = s_.m[row];
        s_.run_l[row] = s_.l[row * 16];
        continue;
      }
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
        key_tile_.restore(acc);
        Q* out = static_cast<Q*>(p.out) + token * p.stride_out_token + head * p.stride_out_head;
        for_each_vector(p.head_dim, [&](int64_t i, int n) { store_n(out + i, load(acc + i), n); });
        if (p.lse != nullptr) p.lse[token * p.stride_lse_token + head] = lse;
      });
    });
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

  const PagedAttentionParams& p;
  const int64_t group_size_;
  Scratch s_;
  Tile key_tile_;
  const int64_t width_;
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

template <class Tile>
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

  Attention<Tile> attention(p, team);
  Item items[2];  // one is held back until the next is known
  int num_items = 0;
  const auto run_held = [&](const Item* next) {
    if (num_items > 0) attention.run(items[(num_items - 1) % 2], next);
  };
  Straddling straddling[2];  // a thread's run can only straddle at its two ends
  int num_straddling = 0;
  bool any_straddles = false;  // of any thread: all find the same
  int64_t cost = 0;
  const auto take_tile = [&](const QueryTile& tile) {
    const int64_t begin = cost;
    cost += cost_of(tile);
    if (owner(begin) == owner(cost - 1) && owner(begin) != team.rank) return;
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
    any_straddles |= first != last;
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
  if (any_straddles) team.sync();
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
    // Types that 16 bits hold exactly.
    constexpr bool kPairs = kHasDotBF16 && (std::is_same_v<T, BF16> || sizeof(T) == 1);
    run<std::conditional_t<kPairs, PairTile<T>, FloatTile<T>>>(p, team);
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
