// SPDX-License-Identifier: Apache-2.0
// out = softmax(softmax_scale * q k^T + mask) v over a paged cache, ragged prefill and decode.
//
// q, out [num_tokens, num_qo_heads, head_dim]; k_cache, v_cache [num_pages, num_kv_heads,
// page_size, head_dim] in f32, f16, bf16, f8 or int8.
//
// Work: attention_plan.h. A thread takes a query tile (up to 96 rows of one KV head's group) and
// walks its key tiles of 64 keys: scores, online softmax, weights times V. In decode it computes
// the KV heads of a sequence side by side, in their order within a page. A key tile is computed
//   - in f32 (float_tile.h): f32 and f16 caches, and all caches if the CPU has no such products;
//   - by products of pairs of 16-bit numbers (pair_tile.h): bf16, f8 and int8 caches on AVX-512.
// Keys that no row of the query tile sees are never read, nor are their entries of the page table:
// zeros stand for them (common/attention.h). During a key tile the rows of the next one are
// prefetched, line by line.
//
// Bytes: the visible K and V once per query tile. FLOPs: 4 head_dim per row and visible key, and
// about 20 for the softmax. Decode is bound by memory up to groups of about 8 rows, prefill by the
// rate of products.
//
// Measured on a shared 2-core AMD EPYC (Zen 4, 3.7 GHz: 117 GFLOP/s f32 and 237 bf16 a core), best
// of several runs, one core, f32 queries, bf16 cache, pages of 16, AVX-512. Prefill: 2048 tokens,
// causal, 9/3 heads of 64. Decode: one token, 9/3 heads of 64, 2000 tokens in cache (from L3).
//                                                                     prefill GFLOP/s   decode us
//   everything in f32                                                          87              76
//   pairs; decode transposes K in registers, 16 keys a vector                 116              69
//   decode reads K untransposed, two keys a vector, eight chains to a score   108              47
//   prefill's eight chains summed in registers, not on the stack              124              47
//   6 x 2 vectors of scores a block, maxima of rows together, 96 rows a
//   query tile (48), splits of 256 keys (128)                                 144              44
//   first sums stored, not added to stored zeros                              146              43
// 32/8 heads of 128: prefill of 1024 tokens 152 GFLOP/s (f32: 99); decode at 1000 tokens 115 us,
// which is 36 GB/s; int8 120 us, f8 207, f16 (in f32) 291. 9/3 heads of 64 at 200 tokens: 4.8 us
// (f32: 8).
//
// Caches in memory, two threads, as a share of the rate of reading in order, in huge pages, in the
// same run (35 GB/s); bf16 if not stated. "One by one": a KV head's whole sequence before the next
// head's. "Side by side": heads in lanes, key tile by key tile. With 4 KiB pages, one by one and
// pages of 16 tokens: 48 to 54 %.
//                                              one by one   side by side
//   32/8 heads of 128, pages of 16, 16384 tokens     53 %           66 %
//     8 sequences of 4096                            69 %           72 %
//     int8, 16384                                    55 %           63 %
//     f8, 16384                                      46 %           51 %
//   the same heads, pages of 64, 16384               76 %           80 %
//   9/3 heads of 64, pages of 64, 7000               76 %           75 %
// Bound: arithmetic of both threads, from L2, reaches 55 to 70 GB/s (int8 33, f8 20). Loads and
// prefetches alone, over the same shuffled pages, reach 75 % with pages of 16, one by one, 80 %
// side by side, 88 % with pages of 64: outstanding misses per core are limited, and short pages
// stop hardware prefetchers.
//
// Alternatives, time relative to prefetching every line into L2:
//   into L1, non-temporally, or not at all             1.5 to 2.2 (L2 has more outstanding misses)
//   in the order of addresses, or several pages by turns      1 to 1.05
//   every second line, or the first of a page                 1.3 to 1.5
#include <optional>
#include <utility>

#include "common/dispatch.h"
#include "cpu/attention/attention_plan.h"
#include "cpu/attention/float_tile.h"
#include "cpu/attention/pair_tile.h"
#include "cpu/kernel_table.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// A split of a query tile.
struct Item {
  QueryTile tile;
  KeyRange keys;   // of the split, within the tile's; empty where the tile sees no key
  float* partial;  // storage for the state; null: it is folded into the running one
  bool first, last;

  int64_t first_key_tile() const { return keys.begin / kKeyTile * kKeyTile; }
};

/// Rows of a lane: query tiles of up to kLaneRows rows are computed side by side, in lanes with
/// separate scratch.
constexpr int kLaneRows = 8;
constexpr int kLanes = kMaxRows / kLaneRows;

/// Unit of a thread's work: the same split of one query tile or, side by side in lanes, of tiles
/// that differ only in their KV head.
struct Group {
  int size = 0;
  Item items[kLanes];
  int lanes[kLanes];

  bool sees_keys() const { return items[0].keys.begin < items[0].keys.end; }
};

/// The rows of a key tile and of the next one, which are prefetched.
struct Lookahead {
  TileRows buffers[2];
  TileRows* current = &buffers[0];
  TileRows* next = &buffers[1];
  bool found = false;  // `current` holds the key tile to be computed now
};

/// Computes query tiles, one after the other. Tile: FloatTile or PairTile.
template <class Tile>
class Attention {
 public:
  Attention(const PagedAttentionParams& params, const Team& team, int lane)
      : p(params),
        group_size_(params.num_qo_heads / params.num_kv_heads),
        s_(static_cast<float*>(params.workspace) + team.rank * scratch_floats(params.head_dim),
           params.head_dim),
        key_tile_(params, s_),
        width_(key_tile_.width()) {
    s_.skip_rows(lane * kLaneRows, width_);
  }

  void begin(const Item& item) {
    if (item.first) begin_tile(item.tile);
    for (int row = 0; row < tile_.num_rows(); ++row) {
      s_.m[row] = kMinusInfinity;
      store(s_.l + row * 16, F32());
    }
    is_first_ = true;
  }

  /// Adds the key tile at `start` to the states of the split. Prefetches the next key tile, that of
  /// next_item at next_start, unless next_item is null.
  void add(const Item& item, int64_t start, const Item* next_item, int64_t next_start,
           Lookahead& rows) {
    if (!rows.found) find_rows(p, tile_, item.keys, start, *rows.current);
    rows.found = next_item != nullptr;
    if (rows.found) find_rows(p, next_item->tile, next_item->keys, next_start, *rows.next);
    find_scales(p, tile_, item.keys, start, *rows.current);
    key_tile_.run(tile_, start, item.keys, *rows.current, rows.found ? rows.next : nullptr,
                  is_first_);
    is_first_ = false;
    std::swap(rows.current, rows.next);
  }

  void end(const Item& item) {
    key_tile_.finish(static_cast<int>(tile_.num_rows()));
    if (item.partial != nullptr) {
      store_split(item.partial);
    } else {
      if (item.keys.begin < item.keys.end) fold_split(item.first);
      if (item.last) write_rows([](int) { return true; });
    }
  }

  /// Folds the stored states of the rows with wanted(row), and writes the results.
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
  /// Loads the queries and empties the running states.
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

  /// Calls fn(row in the tile, token in q, query head).
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
  bool is_first_ = true;  // no key tile of the split has been added
};

/// A thread's groups. A group is computed when the next one is known, so that its keys can be
/// prefetched.
template <class Tile>
class GroupPipeline {
 public:
  GroupPipeline(const PagedAttentionParams& params, const Team& team) : p(params), team_(team) {}

  Attention<Tile>& lane(int index) {
    std::optional<Attention<Tile>>& lane = lanes_[index];
    if (!lane) lane.emplace(p, team_, index);
    return *lane;
  }

  /// The group to fill; push() then takes it.
  Group& next() { return groups_[filling_]; }
  void push() {
    run_pending(&next());
    filling_ = 1 - filling_;
    next().size = 0;
    is_pending_ = true;
  }
  void finish() { run_pending(nullptr); }

 private:
  void run_pending(const Group* next) {
    if (!is_pending_) return;
    const Group& group = groups_[1 - filling_];
    const KeyRange& keys = group.items[0].keys;
    if (next != nullptr && !next->sees_keys()) next = nullptr;
    for (int i = 0; i < group.size; ++i) lane(group.lanes[i]).begin(group.items[i]);
    // Key tile by key tile, since the KV heads of a page are side by side.
    for (int64_t start = group.items[0].first_key_tile(); start < keys.end; start += kKeyTile) {
      for (int i = 0; i < group.size; ++i) {
        const Item* next_item = &group.items[(i + 1) % group.size];
        int64_t next_start = i + 1 < group.size ? start : start + kKeyTile;
        if (next_start >= keys.end) {
          next_item = next != nullptr ? &next->items[0] : nullptr;
          next_start = next != nullptr ? next->items[0].first_key_tile() : 0;
        }
        lane(group.lanes[i]).add(group.items[i], start, next_item, next_start, rows_);
      }
    }
    for (int i = 0; i < group.size; ++i) lane(group.lanes[i]).end(group.items[i]);
  }

  const PagedAttentionParams& p;
  const Team& team_;
  std::optional<Attention<Tile>> lanes_[kLanes];
  Group groups_[2];
  int filling_ = 0;  // of groups_; the other one is pending
  bool is_pending_ = false;
  Lookahead rows_;
};

/// A thread's part of a query tile: the splits [begin, end), counted from the tile's first.
struct Part {
  QueryTile tile;
  int64_t begin, end;
  float* slot;  // storage for the states of all splits; null: the tile is not shared
};

/// A tile with splits of several threads: this thread is one of [first, last].
struct SharedTile {
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
  const int64_t split_floats = shared_tile_rows(group_size) * partial_floats(p.head_dim);
  const int64_t max_splits = round_up(p.max_pages_per_seq * p.page_size, kSplit) / kSplit;
  float* partials = static_cast<float*>(p.workspace) + team.size * scratch_floats(p.head_dim);

  GroupPipeline<Tile> groups(p, team);
  SharedTile shared[2];  // only the two ends of a thread's run can be shared
  int num_shared = 0;
  bool any_shared = false;  // by any threads: all threads find the same
  Part parts[kLanes];
  int num_parts = 0;
  const auto run_parts = [&] {
    int64_t begin = INT64_MAX, end = 0;
    for (int i = 0; i < num_parts; ++i) {
      if (parts[i].begin < begin) begin = parts[i].begin;
      if (parts[i].end > end) end = parts[i].end;
    }
    for (int64_t split = begin; split < end; ++split) {
      Group& group = groups.next();
      for (int i = 0; i < num_parts; ++i) {
        const Part& part = parts[i];
        if (split < part.begin || split >= part.end) continue;
        float* const slot = part.slot;
        group.items[group.size] = {.tile = part.tile,
                                   .keys = part.tile.keys_of_split(part.tile.first_split() + split),
                                   .partial = slot != nullptr ? slot + split * split_floats : slot,
                                   .first = split == part.begin,
                                   .last = split + 1 == part.end};
        group.lanes[group.size++] = i;
      }
      groups.push();
    }
    num_parts = 0;
  };
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
    if (num_splits > 1 && tile.num_rows() <= shared_tile_rows(group_size)) {
      first = split_owner(first_split);
      last = split_owner(first_split + num_splits - 1);
    }
    any_shared |= first != last;
    if (team.rank < first || team.rank > last) return;
    Part& part = parts[num_parts++];
    part = {.tile = tile, .begin = 0, .end = num_splits > 0 ? num_splits : 1, .slot = nullptr};
    if (first != last) {
      part.slot = partials + first * max_splits * split_floats;
      shared[num_shared++] = {tile, part.slot, first, last};
      while (split_owner(first_split + part.begin) < team.rank) ++part.begin;
      while (split_owner(first_split + part.end - 1) > team.rank) --part.end;
    }
    // Further small tiles of this sequence are added in other lanes.
    if (num_parts == kLanes || tile.num_rows() > kLaneRows) run_parts();
  };
  for (int64_t seq = 0; seq < p.batch_size; ++seq) {
    const int64_t num_rows = (p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq]) * group_size;
    for (int64_t kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
      for_each_query_tile(p, seq, tile_rows, [&](QueryTile tile) {
        tile.kv_head = kv_head;
        take_tile(tile);
        if (num_rows > tile_rows) run_parts();
      });
    }
    run_parts();
  }
  groups.finish();
  if (any_shared) team.sync();
  for (int i = 0; i < num_shared; ++i) {
    const SharedTile& s = shared[i];
    groups.lane(0).merge(s.tile, s.partials, split_floats, [&](int row) {
      return s.first + row % (s.last - s.first + 1) == team.rank;
    });
  }
}

/// Clears the rows of out and lse that belong to no sequence.
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
