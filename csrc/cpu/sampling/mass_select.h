// SPDX-License-Identifier: Apache-2.0
// Finds where a row's order is cut, without sorting it: the largest value t such that the tokens
// with l >= t weigh at least the target. A token weighs 1 (top-k) or its mass (top-p).
//
// A bracket [low, high] that should hold t comes from a sample of the row. One exact pass then sums
// the weight above the bracket and lists the tokens inside; t is sought in the list by halving. If
// the bracket missed t the pass has told on which side it is, and the search goes on there; if the
// list overflowed, it is a better sample for a narrower bracket. All sums are integers, so t does
// not depend on the sample, the brackets, the threads or the vector width.
#pragma once

#include "cpu/sampling/row_scan.h"

namespace lampo::cpu::LAMPO_ISA {

/// The next larger float; a is not +inf.
static inline float next_up(float a) {
  if (a == 0.0f) return float_from_bits(1);
  const uint32_t bits = bits_from_float(a);
  return float_from_bits(a > 0.0f ? bits + 1 : bits - 1);
}
static inline float next_down(float a) { return -next_up(-a); }

/// The threads that work on one row, their common memory, and this thread's part.
struct RowTeam {
  const Team& team;
  SampleSlot slot;
  int64_t num_blocks;
  Share blocks;
  BracketList list;
  int turn = 0;

  RowTeam(const Team& row_team, const SampleSlot& row_slot, int64_t row_blocks)
      : team(row_team),
        slot(row_slot),
        num_blocks(row_blocks),
        blocks(share_of(row_blocks, row_team)) {
    const int64_t capacity = slot.list_capacity / team.size;
    const int64_t at = team.rank * capacity;
    list = {slot.list + at, slot.list_mass + at, slot.block_end, capacity};
  }
  bool leads() const { return team.rank == 0; }

  /// The parts of all threads as one. A barrier: all threads see all writes before it.
  ScanPart all_reduce(const ScanPart& mine) {
    ScanPart* parts = slot.parts + turn * team.size;
    turn ^= 1;
    parts[team.rank] = mine;
    team.sync();
    ScanPart all = parts[0];
    for (int rank = 1; rank < team.size; ++rank) {
      all.total += parts[rank].total;
      all.above += parts[rank].above;
      all.inside += parts[rank].inside;
      all.listed += parts[rank].listed;
      all.overflow = all.overflow || parts[rank].overflow;
      all.raw_max = all.raw_max > parts[rank].raw_max ? all.raw_max : parts[rank].raw_max;
    }
    return all;
  }

  /// The result of the leader's fn(), for all threads. The common scratch memory is the leader's.
  template <class Fn>
  Bracket from_leader(Fn&& fn) const {
    if (leads()) {
      const Bracket bracket = fn();
      slot.broadcast->low = bracket.low;
      slot.broadcast->high = bracket.high;
    }
    team.sync();
    return {slot.broadcast->low, slot.broadcast->high};
  }

  /// Moves the parts of the list together, in slot.list; for the leader, after all_reduce().
  int64_t gather_list() const {
    const ScanPart* parts = slot.parts + (turn ^ 1) * team.size;
    const int64_t capacity = slot.list_capacity / team.size;
    int64_t size = parts[0].listed;
    for (int rank = 1; rank < team.size; ++rank) {
      const auto bytes = static_cast<size_t>(parts[rank].listed) * 4;
      memmove(slot.list + size, slot.list + rank * capacity, bytes);
      memmove(slot.list_mass + size, slot.list_mass + rank * capacity, bytes);
      const Share theirs = share_of(num_blocks, Team{rank, team.size});
      for (int64_t block = theirs.begin; block < theirs.end; ++block) {
        slot.block_end[block] += static_cast<int32_t>(size);
      }
      size += parts[rank].listed;
    }
    return size;
  }
};

/// Values with their masses, which are not read where a token counts 1.
struct ListView {
  const float* value;
  const float* mass;
  int64_t size;
};

/// Weights of a list's values above a pivot, and from it on.
struct PivotSums {
  uint64_t above, from;
};

template <class Weight>
static inline PivotSums sums_at(ListView list, float pivot) {
  PivotSums sums = {};
  if constexpr (Weight::kMass) {
    FixedSum above, from;
    for_list(list.value, list.size, -kInf, [&](F32 l, int64_t i, int) {
      const FixedLanes fixed = fixed_lanes(load(list.mass + i));  // never beyond the slack
      above.add(fixed, greater(l, F32(pivot)));
      from.add(fixed, at_least_mask(l, F32(pivot)));
    });
    sums = {above.total(), from.total()};
  } else {
    for_list(list.value, list.size, -kInf, [&](F32 l, int64_t, int) {
      sums.above += static_cast<uint64_t>(__builtin_popcount(lane_bits(greater(l, F32(pivot)))));
      sums.from +=
          static_cast<uint64_t>(__builtin_popcount(lane_bits(at_least_mask(l, F32(pivot)))));
    });
  }
  return sums;
}

/// The middle one of up to 15 values taken at even distances.
static inline float middle_value(const float* values, int64_t size) {
  constexpr int kMost = 15;
  const int count = size < kMost ? static_cast<int>(size) : kMost;
  float some[kMost];
  for (int i = 0; i < count; ++i) some[i] = values[i * size / count];
  for (int i = 0; i < count; ++i) {
    int less = 0, equal = 0;
    for (int j = 0; j < count; ++j) {
      less += some[j] < some[i];
      equal += some[j] == some[i];
    }
    if (less <= count / 2 && count / 2 < less + equal) return some[i];
  }
  return some[0];
}

/// Where a list is cut: weight(values > value) < target <= weight(values >= value).
struct ListCut {
  float value;
  uint64_t above;
};

/// `buffer` has room for two such lists with slack; the list stays as it is. Requires a list of
/// finite values that weighs at least `target` >= 1.
template <class Weight>
static inline ListCut cut_list(ListView list, uint64_t target, float* buffer) {
  float* masses = buffer + list.size + kListSlack;
  uint64_t passed = 0;  // weight above all values still in question
  ListCut cut = {list.value[0], 0};
  while (list.size > 0) {
    const float pivot = middle_value(list.value, list.size);
    const PivotSums sums = sums_at<Weight>(list, pivot);
    cut = {pivot, passed + sums.above};
    const bool look_above = passed + sums.above >= target;
    if (!look_above && passed + sums.from >= target) break;
    if (!look_above) passed += sums.from;
    int64_t left = 0;
    for_list(list.value, list.size, 0.0f, [&](F32 l, int64_t i, int n) {
      const Mask stays = (look_above ? greater(l, F32(pivot)) : greater(F32(pivot), l)) & first(n);
      // In place too: what is written is never ahead of what is read.
      if constexpr (Weight::kMass) compress(masses + left, load(list.mass + i), stays);
      compress(buffer + left, l, stays);
      left += __builtin_popcount(lane_bits(stays));
    });
    list = {buffer, masses, left};
  }
  return cut;
}

/// The weight of the cut: an exact one, or top_p_target(p, total) of a total that the first
/// pass finds.
struct Target {
  uint64_t weight;
  float p;  // 0: `weight` is given
};

/// Where a row is cut: tokens above `value` are in, and of those equal to it the first `ties`.
struct RowCut {
  float value;
  int64_t ties;  // 0: nothing is cut off (there are fewer tokens than were asked for)
  bool listed;   // slot.list holds the tokens of the bracket, for the leader
  int64_t list_size;
  bool list_only;  // and nothing lies above the bracket
  uint64_t total;  // weight of the row; by count only where nothing is cut off
};

template <class Weight>
static inline int64_t ties_needed(float value, uint64_t missing, MassScale mass) {
  if constexpr (!Weight::kMass) return static_cast<int64_t>(missing);
  const uint64_t one = round_to_u64(mass(value));
  return static_cast<int64_t>((missing + one - 1) / one);
}

/// A bracket around the cut of a listed part of [low, high], of which `share` lies above the cut.
template <class Weight>
static inline Bracket narrow(ListView list, double share, float* buffer, Bracket from) {
  constexpr double kMargin = 0.04;
  const double weight = static_cast<double>(sums_at<Weight>(list, from.low).from);
  const double upper = (share - kMargin) * weight, lower = (share + kMargin) * weight;
  Bracket to = from;
  if (upper > 1.0) {
    to.high = cut_list<Weight>(list, static_cast<uint64_t>(upper), buffer).value;
  }
  if (lower < weight - 1.0) {
    to.low = cut_list<Weight>(list, static_cast<uint64_t>(lower) + 1, buffer).value;
  }
  // The list is no fair sample where values come sorted: make sure that a pass decides something.
  if (to.low == from.low && to.high == from.high) {
    to.low = to.high = middle_value(list.value, list.size);
  }
  return to;
}

/// Run by all threads of the row's team, which all return the same cut.
template <class Weight, bool kMinP, class E>
static inline RowCut cut_row(RowTeam& team, const LogitRow<E>& row, MassScale mass, Target target,
                             float min_mass, Bracket bracket) {
  RowCut cut = {};
  Bracket outer = kWholeRow;  // surely holds the cut
  const SampleSlot& slot = team.slot;
  for (;;) {
    const ScanPart all = team.all_reduce(scan_bracket<Weight, kMinP>(
        row, team.blocks, slot.block_max, mass, bracket, min_mass, team.list, slot.block_mass));
    if (target.p != 0.0f) target = {top_p_target(target.p, all.total), 0.0f};
    cut.total = all.total;
    if (all.above >= target.weight) {
      outer.low = next_up(bracket.high);
      bracket = outer;
      continue;
    }
    if (all.above + all.inside < target.weight) {
      if (bracket.low == kLowestFinite) {
        cut.total = all.above + all.inside;
        return cut;
      }
      outer.high = next_down(bracket.low);
      bracket = outer;
      continue;
    }
    const uint64_t missing = target.weight - all.above;
    if (bracket.low != bracket.high && all.overflow) {
      outer = bracket;
      const double share = static_cast<double>(missing) / static_cast<double>(all.inside);
      bracket = team.from_leader([&] {
        const ListView list = {slot.list, slot.list_mass, team.gather_list()};
        return narrow<Weight>(list, share, slot.scratch, outer);
      });
      continue;
    }
    if (team.leads()) {
      cut.listed = !all.overflow;
      cut.list_size = cut.listed ? team.gather_list() : 0;
      ListCut found = {bracket.low, 0};
      if (bracket.low != bracket.high) {
        found = cut_list<Weight>({slot.list, slot.list_mass, cut.list_size}, missing, slot.scratch);
      }
      slot.broadcast->low = found.value;
      slot.broadcast->ties = ties_needed<Weight>(found.value, missing - found.above, mass);
    }
    team.team.sync();
    cut.value = slot.broadcast->low;
    cut.ties = slot.broadcast->ties;
    cut.listed = !all.overflow;
    cut.list_only = cut.listed && all.above == 0;
    return cut;
  }
}

}  // namespace lampo::cpu::LAMPO_ISA
