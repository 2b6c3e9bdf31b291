// SPDX-License-Identifier: Apache-2.0
// The mask of attention: which keys a query sees. Queries and keys are numbered by position in
// their sequence; a sequence of seq_len keys ends with its queries.
//
// The keys of one query are one interval. Over the rows of a tile, in order of positions, both ends
// of it grow, so that the first and the last row say what any of them and what all of them see.
#pragma once

#include "common/numeric.h"

namespace lampo {

struct AttentionMask {
  bool causal;             // position p sees no key behind p
  int64_t sliding_window;  // position p sees (p - window, p]; 0: no window. Causal only
};

/// Positions [begin, end); none where begin >= end. Int: int on CUDA, int64_t on the CPU.
template <class Int>
struct Interval {
  Int begin, end;
};

/// The keys that a query at `position` sees. If it is negative (more queries than keys) there is no
/// key at or before it.
template <class Int>
LAMPO_HOST_DEVICE static inline Interval<Int> visible_keys(const AttentionMask& mask, Int position,
                                                           Int seq_len) {
  const int64_t begin = mask.sliding_window > 0 ? position - mask.sliding_window + 1 : 0;
  const Int end = mask.causal ? position + 1 : seq_len;
  return {begin > 0 ? static_cast<Int>(begin) : 0, end > 0 ? end : 0};
}

/// The keys that any query at the positions [first, last] sees.
template <class Int>
LAMPO_HOST_DEVICE static inline Interval<Int> keys_seen_by_any(const AttentionMask& mask, Int first,
                                                               Int last, Int seq_len) {
  return {visible_keys(mask, first, seq_len).begin, visible_keys(mask, last, seq_len).end};
}

/// The keys that every query at the positions [first, last] sees.
template <class Int>
LAMPO_HOST_DEVICE static inline Interval<Int> keys_seen_by_all(const AttentionMask& mask, Int first,
                                                               Int last, Int seq_len) {
  return {visible_keys(mask, last, seq_len).begin, visible_keys(mask, first, seq_len).end};
}

}  // namespace lampo
