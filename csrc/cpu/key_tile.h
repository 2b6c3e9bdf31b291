// SPDX-License-Identifier: Apache-2.0
// A tile of kKeyTile keys of a paged cache: where its rows are, and K transposed.
#pragma once

#include "cpu/attention_plan.h"
#include "cpu/matmul_block.h"
#include "cpu/vec/units.h"

namespace lampo::cpu::LAMPO_ISA {

/// What keys that may not be touched point to: zeros of any type, head_dim long.
alignas(64) static const char kZeroRow[256 * sizeof(float)] = {};

/// Where the K rows, then the V rows, of one key tile are.
struct TileRows {
  const char* k[kKeyTile];
  const char* v[kKeyTile];
  float k_scale[kKeyTile];
  float v_scale[kKeyTile];
};

/// The rows and scales of the keys of the key tile at `start`; zeros outside [keys.begin,
/// keys.end).
static inline void find_rows(const PagedAttentionParams& p, const QueryTile& tile,
                             const KeyRange& keys, int64_t start, TileRows& rows) {
  const int64_t size = size_of(p.cache_dtype);
  const int64_t first = start > keys.begin ? start : keys.begin;
  const int64_t last = start + kKeyTile < keys.end ? start + kKeyTile : keys.end;
  const auto skip = [&](int64_t j) {
    rows.k[j] = rows.v[j] = kZeroRow;
    rows.k_scale[j] = rows.v_scale[j] = 0.0f;
  };
  for (int64_t j = 0; j < first - start; ++j) skip(j);
  for (int64_t j = last - start; j < kKeyTile; ++j) skip(j);
  const int32_t* pages = p.page_table + tile.seq * p.stride_page_table_seq;
  const int64_t head = tile.kv_head;
  const int page_shift = __builtin_ctzll(static_cast<unsigned long long>(p.page_size));
  for (int64_t key = first; key < last;) {
    const int64_t slot = key & (p.page_size - 1);
    const int64_t page = pages[key >> page_shift];
    const int64_t count = p.page_size - slot < last - key ? p.page_size - slot : last - key;
    const char* k = static_cast<const char*>(p.k_cache) +
                    size * (page * p.stride_k_cache_page + head * p.stride_k_cache_head +
                            slot * p.stride_k_cache_slot);
    const char* v = static_cast<const char*>(p.v_cache) +
                    size * (page * p.stride_v_cache_page + head * p.stride_v_cache_head +
                            slot * p.stride_v_cache_slot);
    const int64_t at = key - start;
    for (int64_t j = 0; j < count; ++j) {
      rows.k[at + j] = k + j * size * p.stride_k_cache_slot;
      rows.v[at + j] = v + j * size * p.stride_v_cache_slot;
    }
    if (p.k_scale != nullptr) {
      const float* scale = p.k_scale + page * p.stride_k_scale_page + head * p.stride_k_scale_head +
                           slot * p.stride_k_scale_slot;
      for (int64_t j = 0; j < count; ++j) rows.k_scale[at + j] = scale[j * p.stride_k_scale_slot];
    }
    if (p.v_scale != nullptr) {
      const float* scale = p.v_scale + page * p.stride_v_scale_page + head * p.stride_v_scale_head +
                           slot * p.stride_v_scale_slot;
      for (int64_t j = 0; j < count; ++j) rows.v_scale[at + j] = scale[j * p.stride_v_scale_slot];
    }
    key += count;
  }
}

/// kt[i][j] = element i (kPairs: elements 2i and 2i + 1, as BF16) of row j, for kWidth rows.
template <class T, bool kPairs>
static inline void transpose_rows(const char* const* rows, int64_t head_dim, float* kt,
                                  int64_t stride, Prefetcher& prefetcher) {
  constexpr int kWidth = F32::kWidth;
  constexpr int kParts = 4 / static_cast<int>(sizeof(T));
  constexpr int64_t kBlock = kWidth * kParts;
  const auto put = [&](const Units* units, int64_t first, int64_t count) {
#pragma GCC unroll 16
    for (int u = 0; u < kWidth; ++u) {
      if (u * kParts >= count) break;
      if constexpr (kPairs) {
        float* to = kt + (first + u * kParts) / 2 * stride;
        store(to, widen_pairs<T, 0>(units[u]));
        if constexpr (kParts > 2) store(to + stride, widen_pairs<T, 1>(units[u]));
      } else {
        float* to = kt + (first + u * kParts) * stride;
        store(to, widen<T, 0>(units[u]));
        if constexpr (kParts > 1) store(to + stride, widen<T, 1>(units[u]));
        if constexpr (kParts > 2) store(to + 2 * stride, widen<T, 2>(units[u]));
        if constexpr (kParts > 2) store(to + 3 * stride, widen<T, 3>(units[u]));
      }
    }
  };
  // The transposition reads across the rows: ask for them along, as the memory has them.
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

}  // namespace lampo::cpu::LAMPO_ISA
