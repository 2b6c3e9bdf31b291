// SPDX-License-Identifier: Apache-2.0
// Passes over one row of logits, by blocks of kSampleBlock tokens. A pass takes the blocks of one
// thread; what it sums are integers, so parts may be added in any order.
#pragma once

#include "common/sampling.h"
#include "cpu/sample_workspace.h"
#include "cpu/team.h"
#include "cpu/vec/mask.h"

namespace lampo::cpu::LAMPO_ISA {

constexpr float kInf = __builtin_inff();
constexpr float kLowestFinite = -3.40282347e38f;

/// Logits as the passes read them: NaN and what lies beyond the row count as -inf.
template <class E>
struct LogitRow {
  const E* data;
  int64_t size;

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
    row.for_block(block, [&](int64_t, F32 l) { sum.add(mass(l)); });
  }
  return sum.total();
}

/// The tokens of a bracket, low <= l <= high, side by side with their numbers.
struct BracketList {
  float* value;
  int32_t* index;
  int64_t capacity;
  int64_t size = 0;
  bool overflow = false;

  void append(F32 l, int64_t i, Mask chosen, uint32_t bits) {
    const int count = __builtin_popcount(bits);
    if (size + F32::kWidth > capacity) {  // what is stored is a whole vector
      overflow = true;
      return;
    }
    compress(value + size, l, chosen);
    compress_index(index + size, static_cast<int32_t>(i), chosen);
    size += count;
  }
};

/// One thread's part of a selection pass: weights above and inside the bracket [low, high], the
/// list of those inside, and, by mass, the total and each block's mass of tokens above the bracket
/// that have at least min_mass.
template <class Weight, bool kMinP, class E>
static inline ScanPart scan_bracket(const LogitRow<E>& row, Share blocks, const float* block_max,
                                    MassScale mass, float low, float high, float min_mass,
                                    BracketList* list, uint64_t* block_mass) {
  FixedSum total, at_least_low;
  uint64_t above = 0;
  uint64_t count_above = 0, count_at_least_low = 0;
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    if constexpr (Weight::kMass) block_mass[block] = 0;
    if (block_max[block] < low) {
      if (Weight::kMass && !mass.negligible(block_max[block])) {
        row.for_block(block, [&](int64_t, F32 l) { total.add(mass(l)); });
      }
      continue;
    }
    FixedSum above_sum, kept_sum;
    row.for_block(block, [&](int64_t i, F32 l) {
      const Mask over = greater(l, F32(high));
      const Mask from_low = at_least_mask(l, F32(low));
      if constexpr (Weight::kMass) {
        const F32 m = mass(l);
        total.add(m);
        at_least_low.add(m, from_low);
        above_sum.add(m, over);
        if constexpr (kMinP) kept_sum.add(m, over & at_least_mask(m, F32(min_mass)));
      } else {
        count_above += static_cast<uint64_t>(__builtin_popcount(lane_bits(over)));
        count_at_least_low += static_cast<uint64_t>(__builtin_popcount(lane_bits(from_low)));
      }
      const Mask inside = and_not(from_low, over);
      const uint32_t bits = lane_bits(inside);
      if (bits != 0) list->append(l, i, inside, bits);
    });
    if constexpr (Weight::kMass) {
      const uint64_t sum = above_sum.total();
      above += sum;
      block_mass[block] = kMinP ? kept_sum.total() : sum;
    }
  }
  ScanPart part = {};
  if constexpr (Weight::kMass) {
    part.total = total.total();
    part.above = above;
    part.inside = at_least_low.total() - above;
  } else {
    part.above = count_above;
    part.inside = count_at_least_low - count_above;
  }
  part.listed = list->size;
  part.overflow = list->overflow;
  return part;
}

/// What the filters keep: l > value, or l == value up to token `last`; and m >= min_mass.
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
    if (block_max[block] < kept.value || mass.negligible(block_max[block])) continue;
    FixedSum kept_sum;
    row.for_block(block, [&](int64_t i, F32 l) {
      const F32 m = mass(l);
      kept_sum.add(m, kept(l, m, i));
    });
    block_mass[block] = kept_sum.total();
    sum += block_mass[block];
  }
  return sum;
}

/// Number of the `count`-th token that equals `value`, from 1.
template <class E>
static inline int64_t find_tie(const LogitRow<E>& row, const float* block_max, float value,
                               int64_t count) {
  for (int64_t block = 0; block < row.num_blocks(); ++block) {
    if (block_max[block] < value) continue;
    int64_t found = -1;
    row.for_block(block, [&](int64_t i, F32 l) {
      if (found >= 0) return;
      uint32_t bits = lane_bits(equal(l, F32(value)));
      const int here = __builtin_popcount(bits);
      if (here < count) {
        count -= here;
        return;
      }
      for (; count > 1; --count) bits &= bits - 1;
      found = i + __builtin_ctz(bits);
    });
    if (found >= 0) return found;
  }
  return row.size - 1;
}

}  // namespace lampo::cpu::LAMPO_ISA
