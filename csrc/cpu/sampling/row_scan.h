// SPDX-License-Identifier: Apache-2.0
// Passes over one row of logits, by blocks of kSampleBlock tokens. A pass takes the blocks of one
// thread; what it sums are integers, so parts may be added in any order.
#pragma once

#include "common/sampling.h"
#include "cpu/runtime/team.h"
#include "cpu/sampling/sample_workspace.h"
#include "cpu/vec/mask.h"

namespace lampo::cpu::LAMPO_ISA {

constexpr float kInf = __builtin_inff();
constexpr float kLowestFinite = -3.40282347e38f;

/// Logits as the passes read them: NaN and what lies beyond the row count as -inf.
template <class E>
struct LogitRow {
  const E* data;
  int64_t size;
  const E* next = nullptr;  // the row after this one

  int64_t num_blocks() const { return num_sample_blocks(size); }
  /// Calls fn(i, lanes) for the vectors of one block.
  template <class Fn>
  void for_block(int64_t block, Fn&& fn) const {
    const int64_t begin = block * kSampleBlock;
    if (begin + kSampleBlock <= size) {
      for (int64_t i = begin; i < begin + kSampleBlock; i += F32::kWidth) fn(i, load(data + i));
      return;
    }
    for (int64_t i = begin; i < size; i += F32::kWidth) {
      const int64_t left = size - i;
      fn(i, load_or_lowest(data + i, left < F32::kWidth ? static_cast<int>(left) : F32::kWidth));
    }
  }
  /// A pass that computes masses leaves the memory idle: fetch the next row meanwhile.
  void prefetch_next(int64_t block) const {
    constexpr int64_t kLine = 64 / sizeof(E);
    if (next == nullptr || (block + 1) * kSampleBlock > size) return;
    const E* at = next + block * kSampleBlock;
    for (int64_t i = 0; i < kSampleBlock; i += kLine) __builtin_prefetch(at + i, 0, 2);
  }
  float at(int64_t i) const {
    const float l = to_float(data[i]);
    return l == l ? l : -kInf;
  }
};

/// From logits to masses: m = 2^((l - max) * scale + 40).
struct MassScale {
  float max;
  float scale;

  F32 operator()(F32 l) const { return exp2_times_2_40((l - F32(max)) * F32(scale)); }
  float operator()(float l) const { return exp2_times_2_40((l - max) * scale); }
  /// No token of a block with this maximum has a mass: 2^(-42 + 40) rounds to 0 with room to spare.
  bool negligible(float block_max) const { return !((block_max - max) * scale >= -42.0f); }
};

struct Bracket {
  float low, high;  // closed
};
constexpr Bracket kWholeRow = {kLowestFinite, kInf};

/// Calls fn(values, i, n) for the vectors of an array; lanes beyond its end hold `rest`.
template <class Fn>
static inline void for_list(const float* values, int64_t size, float rest, Fn&& fn) {
  int64_t i = 0;
  for (; i + F32::kWidth <= size; i += F32::kWidth) fn(load(values + i), i, F32::kWidth);
  if (i == size) return;
  const int n = static_cast<int>(size - i);
  fn(blend(first(n), load_n(values + i, n), F32(rest)), i, n);
}

/// Weights of the two selections: a token counts 1 for top-k, its mass for top-p.
struct CountWeight {
  static constexpr bool kMass = false;
};
struct MassWeight {
  static constexpr bool kMass = true;
};

template <class E>
static inline float find_block_maxima(const LogitRow<E>& row, Share blocks, float* block_max) {
  F32 row_max(-kInf);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    F32 even(-kInf), odd(-kInf);  // two chains hide the latency of max
    row.for_block(block, [&](int64_t i, F32 l) {
      F32& chain = i & F32::kWidth ? odd : even;
      chain = max(l, chain);  // NaN: keeps the chain
    });
    const F32 best = max(even, odd);
    block_max[block] = reduce_max(best);
    row_max = max(best, row_max);
  }
  return reduce_max(row_max);
}

/// Mass of all tokens, whatever their order.
template <class E>
static inline uint64_t total_mass(const LogitRow<E>& row, Share blocks, MassScale mass) {
  FixedSum sum;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    row.for_block(block, [&](int64_t, F32 l) { sum.add(fixed_lanes(mass(l))); });
  }
  return sum.total();
}

/// The logits of a bracket, low <= l <= high, side by side in the order of the tokens. Which token
/// one belongs to can be found out from the number of those before it and in each block.
struct BracketList {
  float* value;
  float* mass;
  int32_t* block_end;  // [num_blocks] length of the list after each block
  int64_t capacity;
  int64_t size = 0;

  /// For all of a block, and for the last vector's unused lanes.
  bool has_room() const { return size + kSampleBlock + F32::kWidth <= capacity; }
  void append(F32 l, Mask inside) {
    compress(value + size, l, inside);
    size += __builtin_popcount(lane_bits(inside));
  }
};

/// One thread's part of a selection pass: weights above and inside the bracket, the list of those
/// inside, and, by mass, the total and each block's mass of tokens above the bracket that have at
/// least min_mass. All vectors append to the list, even nothing: whether they have something
/// is unpredictable, and a mispredicted branch costs more than the append.
template <class Weight, bool kMinP, class E>
static inline ScanPart scan_bracket(const LogitRow<E>& row, Share blocks, const float* block_max,
                                    MassScale mass, Bracket bracket, float min_mass,
                                    BracketList& list, uint64_t* block_mass) {
  const F32 low(bracket.low), high(bracket.high);
  FixedSum total, inside;
  ScanPart part = {};
  list.size = 0;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    const bool any_above = block_max[block] > bracket.high;
    const bool any_inside = block_max[block] >= bracket.low;
    const bool listing = list.has_room();
    part.overflow = part.overflow || (any_inside && !listing);
    if constexpr (!Weight::kMass) {
      if (any_inside) {
        row.for_block(block, [&](int64_t, F32 l) {
          const Mask above = greater(l, high);
          const Mask within = and_not(at_least_mask(l, low), above);
          part.above += static_cast<uint64_t>(__builtin_popcount(lane_bits(above)));
          part.inside += static_cast<uint64_t>(__builtin_popcount(lane_bits(within)));
          if (listing) list.append(l, within);
        });
      }
    } else {
      block_mass[block] = 0;
      row.prefetch_next(block);
      if (!any_inside) {
        if (!mass.negligible(block_max[block])) {
          row.for_block(block, [&](int64_t, F32 l) { total.add(fixed_lanes(mass(l))); });
        }
      } else if (listing && !any_above) {
        row.for_block(block, [&](int64_t, F32 l) {
          total.add(fixed_lanes(mass(l)));
          list.append(l, at_least_mask(l, low));
        });
      } else {
        FixedSum above_sum, kept_sum;
        row.for_block(block, [&](int64_t, F32 l) {
          const F32 m = mass(l);
          const FixedLanes fixed = fixed_lanes(m);
          const Mask above = greater(l, high);
          const Mask within = and_not(at_least_mask(l, low), above);
          total.add(fixed);
          above_sum.add(fixed, above);
          if constexpr (kMinP) kept_sum.add(fixed, above & at_least_mask(m, F32(min_mass)));
          if (listing) {
            list.append(l, within);
          } else {
            inside.add(fixed, within);
          }
        });
        const uint64_t sum = above_sum.total();
        part.above += sum;
        block_mass[block] = kMinP ? kept_sum.total() : sum;
      }
    }
    list.block_end[block] = static_cast<int32_t>(list.size);
  }
  if constexpr (Weight::kMass) {
    for_list(list.value, list.size, -kInf, [&](F32 l, int64_t i, int) {
      const F32 m = mass(l);
      store(list.mass + i, m);
      inside.add(fixed_lanes(m));
    });
    part.total = total.total();
    part.inside = inside.total();
  }
  part.listed = list.size;
  return part;
}

/// The tokens that the filters keep: l > value, or l == value up to number `last`; and m >=
/// min_mass. Numbers are of tokens, or of places in a list.
struct Kept {
  float value;
  int64_t last;
  float min_mass;

  Mask operator()(F32 l, F32 m, int64_t i) const {
    const int64_t ties = last - i + 1;  // lanes that may tie
    const Mask tie = equal(l, F32(value)) & first(ties <= 0            ? 0
                                                  : ties < F32::kWidth ? static_cast<int>(ties)
                                                                       : F32::kWidth);
    return (greater(l, F32(value)) | tie) & at_least_mask(m, F32(min_mass));
  }
};

/// Masses of the kept tokens, by block; returns their sum.
template <class E>
static inline uint64_t scan_kept(const LogitRow<E>& row, Share blocks, const float* block_max,
                                 MassScale mass, const Kept& kept, uint64_t* block_mass) {
  uint64_t sum = 0;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    block_mass[block] = 0;
    row.prefetch_next(block);
    if (block_max[block] < kept.value || mass.negligible(block_max[block])) continue;
    FixedSum kept_sum;
    row.for_block(block, [&](int64_t i, F32 l) {
      const F32 m = mass(l);
      kept_sum.add(fixed_lanes(m), kept(l, m, i));
    });
    block_mass[block] = kept_sum.total();
    sum += block_mass[block];
  }
  return sum;
}

/// Number of the `count`-th token of a block that equals `value`, from 1; -1 if there are fewer,
/// after taking them off the count.
template <class E>
static inline int64_t find_tie_in_block(const LogitRow<E>& row, int64_t block, float value,
                                        int64_t& count) {
  int64_t found = -1;
  row.for_block(block, [&](int64_t i, F32 l) {
    if (found >= 0) return;
    uint32_t bits = lane_bits(equal(l, F32(value)));
    const int here = __builtin_popcount(bits);
    if (here < count) {
      count -= here;
      return;
    }
    for (int64_t left = count; left > 1; --left) bits &= bits - 1;
    found = i + __builtin_ctz(bits);
  });
  return found;
}

/// Number of the `count`-th token of the row that equals `value`, from 1.
template <class E>
static inline int64_t find_tie(const LogitRow<E>& row, const float* block_max, float value,
                               int64_t count) {
  for (int64_t block = 0; block < row.num_blocks(); ++block) {
    if (block_max[block] < value) continue;
    const int64_t found = find_tie_in_block(row, block, value, count);
    if (found >= 0) return found;
  }
  return row.size - 1;
}

}  // namespace lampo::cpu::LAMPO_ISA
