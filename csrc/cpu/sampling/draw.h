// SPDX-License-Identifier: Apache-2.0
// The stages of the draw (common/sampling.h), and the masses of a bracket's list.
#pragma once

#include "cpu/sampling/mass_select.h"

namespace lampo::cpu::LAMPO_ISA {

constexpr int kDrawCandidates = 256;

/// One stage. Candidates come in the order of their numbers, so that the first of equal scores is
/// chosen. The compiler vectorizes the loops; correctly rounded operations give the same bits then.
class ExponentialDraw {
 public:
  ExponentialDraw(int64_t seed, int64_t position, DrawStage stage)
      : seed_(seed), position_(position), stage_(stage) {}

  /// `first` is a multiple of 4; count <= kDrawCandidates.
  void add(const float* masses, int64_t first, int count) {
    uint32_t random[kDrawCandidates];
    const auto first_quad = static_cast<uint32_t>(first / 4);
    for (int quad = 0; quad < (count + 3) / 4; ++quad) {
      const PhiloxCounter words =
          draw_noise(seed_, position_, stage_, first_quad + static_cast<uint32_t>(quad));
      for (int i = 0; i < 4; ++i) random[4 * quad + i] = words.word[i];
    }
    float scores[kDrawCandidates];
    for (int i = 0; i < count; ++i) scores[i] = draw_score(masses[i], random[i]);
    for (int i = 0; i < count; ++i) {
      if (scores[i] > best_) {
        best_ = scores[i];
        chosen_ = first + i;
      }
    }
  }
  int64_t chosen() const { return chosen_; }

 private:
  int64_t seed_, position_;
  DrawStage stage_;
  float best_ = 0.0f;
  int64_t chosen_ = 0;
};

/// Place in the list of the n-th value that equals `value`, from 1: it is there.
static inline int64_t find_tie_in_list(const SampleSlot& slot, int64_t size, float value,
                                       int64_t n) {
  int64_t found = -1;
  for_list(slot.list, size, -kInf, [&](F32 l, int64_t at, int) {
    uint32_t bits = lane_bits(equal(l, F32(value)));
    const int here = __builtin_popcount(bits);
    if (found < 0 && here >= n) {
      for (int64_t left = n; left > 1; --left) bits &= bits - 1;
      found = at + __builtin_ctz(bits);
    }
    n -= here;
  });
  return found;
}

/// The token at a place of the list that holds `value`.
template <class E>
static inline int64_t token_of_place(const SampleSlot& slot, const LogitRow<E>& row, float value,
                                     int64_t place) {
  int64_t block = 0;
  while (slot.block_end[block] <= place) ++block;
  int64_t nth = 0;
  for (int64_t i = block > 0 ? slot.block_end[block - 1] : 0; i <= place; ++i) {
    nth += slot.list[i] == value;
  }
  return find_tie_in_block(row, block, value, nth);
}

/// Adds what is kept of the list, numbered by its places, to the blocks' masses. Returns their sum.
static inline uint64_t add_list(const SampleSlot& slot, int64_t num_blocks, const Kept& kept) {
  uint64_t sum = 0;
  int64_t at = 0;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t end = slot.block_end[block];
    FixedSum added;
    for (; at < end; at += F32::kWidth) {
      const F32 l = load(slot.list + at);
      const F32 m = load(slot.list_mass + at);
      const int64_t left = end - at;
      const Mask here = first(left < F32::kWidth ? static_cast<int>(left) : F32::kWidth);
      added.add(fixed_lanes(m), kept(l, m, at) & here);
    }
    at = end;
    slot.block_mass[block] += added.total();
    sum += slot.block_mass[block];
  }
  return sum;
}

/// Fills in the masses of a list that was made by count.
static inline void weigh_list(const SampleSlot& slot, int64_t size, MassScale mass) {
  for_list(slot.list, size, -kInf,
           [&](F32 l, int64_t at, int) { store(slot.list_mass + at, mass(l)); });
}

/// Mass of the list's tokens down to the cut.
static inline uint64_t list_mass(const SampleSlot& slot, const RowCut& cut, MassScale mass) {
  const PivotSums sums = sums_at<MassWeight>({slot.list, slot.list_mass, cut.list_size}, cut.value);
  return sums.above + static_cast<uint64_t>(cut.ties) * round_to_u64(mass(cut.value));
}

/// Log-softmax of a row: ln(2) ((l - max) log2 e) - ln(sum of masses). Infinite logits tie.
struct RawLogprob {
  float max;
  double log_sum;

  float operator()(float l) const {
    if (max == kInf) return l == kInf ? static_cast<float>(-log_sum) : -kInf;
    return static_cast<float>(static_cast<double>(l) - max - log_sum);
  }
};

/// `sum` is the mass of all tokens at temperature 1.
static inline RawLogprob normalizer(float row_max, uint64_t sum) {
  return {row_max, __builtin_log(static_cast<double>(sum) / kMassOne)};
}

/// Run by all threads of the row's team; row_max is the row's maximum.
template <class E>
static inline RawLogprob find_normalizer(RowTeam& team, const LogitRow<E>& row, float row_max) {
  ScanPart part = {};
  if (row_max == kInf) {
    for (int64_t block = team.blocks.begin; block < team.blocks.end; ++block) {
      row.for_block(block, [&](int64_t, F32 l) {
        part.total += static_cast<uint64_t>(__builtin_popcount(lane_bits(equal(l, F32(kInf)))));
      });
    }
    const auto count = static_cast<double>(team.all_reduce(part).total);
    return {row_max, __builtin_log(count)};
  }
  part.total = total_mass(row, team.blocks, MassScale{row_max, exponent_scale(1.0f)});
  return normalizer(row_max, team.all_reduce(part).total);
}

}  // namespace lampo::cpu::LAMPO_ISA
