// SPDX-License-Identifier: Apache-2.0
// The draw's heats (common/sampling.h), and the masses of a bracket's list.
#pragma once

#include "cpu/mass_select.h"

namespace lampo::cpu::LAMPO_ISA {

constexpr int kRaceRunners = 256;

/// Runners come in order of their numbers, so that of equal scores the first wins. The loops are
/// plain: the compiler vectorizes them, and correctly rounded operations give the same bits then.
class Race {
 public:
  Race(int64_t seed, int64_t position, Heat heat) : seed_(seed), position_(position), heat_(heat) {}

  /// `first` is a multiple of 4; count <= kRaceRunners.
  void run(const float* masses, int64_t first, int count) {
    uint32_t random[kRaceRunners];
    const auto first_quad = static_cast<uint32_t>(first / 4);
    for (int quad = 0; quad < (count + 3) / 4; ++quad) {
      const PhiloxCounter words =
          race_noise(seed_, position_, heat_, first_quad + static_cast<uint32_t>(quad));
      for (int i = 0; i < 4; ++i) random[4 * quad + i] = words.word[i];
    }
    float scores[kRaceRunners];
    for (int i = 0; i < count; ++i) scores[i] = race_score(masses[i], random[i]);
    for (int i = 0; i < count; ++i) {
      if (scores[i] > best_) {
        best_ = scores[i];
        winner_ = first + i;
      }
    }
  }
  int64_t winner() const { return winner_; }

 private:
  int64_t seed_, position_;
  Heat heat_;
  float best_ = 0.0f;
  int64_t winner_ = 0;
};

/// Number of the n-th listed token that equals `value`, from 1.
static inline int64_t nth_tie_of_list(const SampleSlot& slot, int64_t size, float value,
                                      int64_t n) {
  int64_t found = -1;
  for_list(slot.list, size, [&](F32 l, int64_t at, int) {
    if (n <= 0) return;
    uint32_t bits = lane_bits(equal(l, F32(value)));
    const int here = __builtin_popcount(bits);
    if (here < n) {
      n -= here;
      return;
    }
    for (; n > 1; --n) bits &= bits - 1;
    found = slot.list_index[at + __builtin_ctz(bits)];
    n = 0;
  });
  return found;
}

/// Adds the kept tokens of the list to the masses of their blocks.
static inline void add_list(const SampleSlot& slot, int64_t size, MassScale mass,
                            const Kept& kept) {
  for_list(slot.list, size, [&](F32 l, int64_t at, int n) {
    float masses[F32::kWidth];
    const F32 m = mass(l);
    store(masses, m);
    const uint32_t over = lane_bits(greater(l, F32(kept.value)));
    const uint32_t ties = lane_bits(equal(l, F32(kept.value)));
    uint32_t bits = (over | ties) & lane_bits(at_least_mask(m, F32(kept.min_mass)) & first(n));
    for (; bits != 0; bits &= bits - 1) {
      const int lane = __builtin_ctz(bits);
      const int64_t token = slot.list_index[at + lane];
      if ((over >> lane & 1) == 0 && token > kept.last) continue;
      slot.block_mass[token / kSampleBlock] += round_to_u64(masses[lane]);
    }
  });
}

/// Mass of the list's tokens down to the cut.
static inline uint64_t list_mass(const SampleSlot& slot, const RowCut& cut, MassScale mass) {
  const uint64_t above = sums_at<MassWeight>(slot.list, cut.list_size, mass, cut.value).above;
  return above + static_cast<uint64_t>(cut.ties) * round_to_u64(mass(cut.value));
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
    const auto count = static_cast<double>(team.meet(part).total);
    return {row_max, __builtin_log(count)};
  }
  part.total = total_mass(row, team.blocks, MassScale{row_max, exponent_scale(1.0f)});
  const auto sum = static_cast<double>(team.meet(part).total);
  return {row_max, __builtin_log(sum / kMassOne)};
}

}  // namespace lampo::cpu::LAMPO_ISA
