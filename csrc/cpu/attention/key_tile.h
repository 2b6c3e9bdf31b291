// SPDX-License-Identifier: Apache-2.0
// Common parts of the two computations of a tile of kKeyTile keys (float_tile.h, pair_tile.h):
// addresses of rows in the paged cache, the keys that a query sees, a thread's scratch memory.
#pragma once

#include "cpu/attention/attention_plan.h"
#include "cpu/attention/online_softmax.h"

namespace lampo::cpu::LAMPO_ISA {

/// Row of zeros of any type, head_dim long: stands for keys that must not be read.
alignas(64) static const char kZeroRow[256 * sizeof(float)] = {};

/// Addresses of the K and V rows of one key tile, and the scales of its keys.
struct TileRows {
  const char* k[kKeyTile];
  const char* v[kKeyTile];
  float k_scale[kKeyTile];
  float v_scale[kKeyTile];
};

/// Calls fn(at, count, page, slot) for the parts of the key tile at `start` that lie in one page:
/// `count` keys from number `at` of the tile on. Only keys of [keys.begin, keys.end), and only
/// their entries of the page table, are visited.
template <class Fn>
static inline void for_each_page(const PagedAttentionParams& p, const QueryTile& tile,
                                 const KeyRange& keys, int64_t start, Fn&& fn) {
  const int64_t first = start > keys.begin ? start : keys.begin;
  const int64_t last = start + kKeyTile < keys.end ? start + kKeyTile : keys.end;
  const int32_t* pages = p.page_table + tile.seq * p.stride_page_table_seq;
  const int page_shift = __builtin_ctzll(static_cast<unsigned long long>(p.page_size));
  for (int64_t key = first; key < last;) {
    const int64_t slot = key & (p.page_size - 1);
    const int64_t count = p.page_size - slot < last - key ? p.page_size - slot : last - key;
    fn(key - start, count, static_cast<int64_t>(pages[key >> page_shift]), slot);
    key += count;
  }
}

/// Finds the rows of the key tile at `start`, kZeroRow outside [keys.begin, keys.end). Scales are
/// prefetched only: reading them here would delay the tile before.
static inline void find_rows(const PagedAttentionParams& p, const QueryTile& tile,
                             const KeyRange& keys, int64_t start, TileRows& rows) {
  const int64_t size = size_of(p.cache_dtype);
  const int64_t head = tile.kv_head;
  const int64_t k_step = size * p.stride_k_cache_slot, v_step = size * p.stride_v_cache_slot;
  for (int64_t j = 0; j < keys.begin - start; ++j) rows.k[j] = rows.v[j] = kZeroRow;
  for (int64_t j = keys.end - start; j < kKeyTile; ++j) rows.k[j] = rows.v[j] = kZeroRow;
  for_each_page(p, tile, keys, start, [&](int64_t at, int64_t count, int64_t page, int64_t slot) {
    const char* k = static_cast<const char*>(p.k_cache) +
                    size * (page * p.stride_k_cache_page + head * p.stride_k_cache_head) +
                    slot * k_step;
    const char* v = static_cast<const char*>(p.v_cache) +
                    size * (page * p.stride_v_cache_page + head * p.stride_v_cache_head) +
                    slot * v_step;
    for (int64_t j = 0; j < count; ++j) {
      rows.k[at + j] = k + j * k_step;
      rows.v[at + j] = v + j * v_step;
    }
    if (p.k_scale != nullptr) {
      prefetch(p.k_scale + page * p.stride_k_scale_page + head * p.stride_k_scale_head +
               slot * p.stride_k_scale_slot);
    }
    if (p.v_scale != nullptr) {
      prefetch(p.v_scale + page * p.stride_v_scale_page + head * p.stride_v_scale_head +
               slot * p.stride_v_scale_slot);
    }
  });
}

/// Reads the scales of the same keys; zeros outside.
static inline void find_scales(const PagedAttentionParams& p, const QueryTile& tile,
                               const KeyRange& keys, int64_t start, TileRows& rows) {
  if (p.k_scale == nullptr && p.v_scale == nullptr) return;
  const int64_t head = tile.kv_head;
  for (int64_t j = 0; j < keys.begin - start; ++j) rows.k_scale[j] = rows.v_scale[j] = 0.0f;
  for (int64_t j = keys.end - start; j < kKeyTile; ++j) rows.k_scale[j] = rows.v_scale[j] = 0.0f;
  for_each_page(p, tile, keys, start, [&](int64_t at, int64_t count, int64_t page, int64_t slot) {
    const auto copy = [&](const float* from, int64_t step, float* to) {
      for (int64_t j = 0; j < count; ++j) to[at + j] = from[j * step];
    };
    if (p.k_scale != nullptr) {
      copy(p.k_scale + page * p.stride_k_scale_page + head * p.stride_k_scale_head +
               slot * p.stride_k_scale_slot,
           p.stride_k_scale_slot, rows.k_scale);
    }
    if (p.v_scale != nullptr) {
      copy(p.v_scale + page * p.stride_v_scale_page + head * p.stride_v_scale_head +
               slot * p.stride_v_scale_slot,
           p.stride_v_scale_slot, rows.v_scale);
    }
  });
}

/// The part of the key tile at `start` that queries at the positions [first, last] see.
static inline RowView view_of(const PagedAttentionParams& p, const QueryTile& tile, int64_t start,
                              int64_t first, int64_t last) {
  const KeyRange seen = keys_seen_by_any(p.mask, first, last, tile.seq_len);
  RowView view;
  view.begin = static_cast<int>(seen.begin > start ? seen.begin - start : 0);
  view.end = static_cast<int>(seen.end - start < kKeyTile ? seen.end - start : kKeyTile);
  view.first = view.begin / F32::kWidth;
  view.last = (view.end + F32::kWidth - 1) / F32::kWidth;
  return view;
}

/// One thread's part of the workspace; width is padded_head_dim(head_dim).
struct Scratch {
  float* q;           // [kMaxRows, width]
  float* kt;          // [width, kKeyTile]
  float* v;           // [kKeyTile, width]
  float* acc;         // [kMaxRows, width], of the split
  float* run_acc;     // [kMaxRows, width], of the splits so far
  float* scores;      // [kMaxRows, kKeyTile]
  float* l;           // [kMaxRows, 16]
  float* m;           // [kMaxRows]
  float* q_scale;     // [kMaxRows]
  float* factor;      // [kMaxRows]
  float* run_m;       // [kMaxRows]
  float* run_l;       // [kMaxRows]
  int64_t* position;  // [kMaxRows], of a row's token in its sequence

  Scratch(float* at, int64_t head_dim) {
    const int64_t width = padded_head_dim(head_dim);
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
    q_scale = take(kMaxRows);
    factor = take(kMaxRows);
    run_m = take(kMaxRows);
    run_l = take(kMaxRows);
    position = reinterpret_cast<int64_t*>(take(kMaxRows * 2));
  }

  /// Skips the first rows, which other lanes use; acc_width: floats of a row of q, acc and run_acc.
  void skip_rows(int rows, int64_t acc_width) {
    for (float** part : {&q, &acc, &run_acc}) *part += rows * acc_width;
    scores += rows * kKeyTile;
    l += rows * 16;
    for (float** part : {&m, &q_scale, &factor, &run_m, &run_l}) *part += rows;
    position += rows;
  }
};

}  // namespace lampo::cpu::LAMPO_ISA
