// SPDX-License-Identifier: Apache-2.0
// Per row of raw logits: the log-softmax at one token, that token's rank, and the most likely
// tokens with theirs.
//
//   logprob = l - max - ln(sum of masses / 2^40), masses as in common/sampling.h at temperature 1;
//   rank = 1 + number of larger logits; the table is sorted by descending logit, ties by id.
//
// Three passes of decreasing width: block maxima; masses of all tokens (compute-bound, as in
// sample.cpp); then only blocks whose maximum reaches the token's logit, or the num_top-th largest
// block maximum, which bounds the num_top-th largest logit from below. Large
// tables are heap-sorted in place: n log n, no scratch.
//
// us per row of 128256 on one Zen 4 core (AVX-512): no table 58, top 20 63, top 1000 184.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/sampling/bracket_estimate.h"
#include "cpu/sampling/draw.h"
#include "cpu/sampling/row_teams.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// Tokens with a larger logit than l, in this thread's blocks.
template <class E>
uint64_t count_above(const RowTeam& team, const LogitRow<E>& row, float l) {
  uint64_t count = 0;
  for (int64_t block = team.blocks.begin; block < team.blocks.end; ++block) {
    if (!(team.slot.block_max[block] > l)) continue;
    row.for_block(block, [&](int64_t, F32 other) {
      count += static_cast<uint64_t>(__builtin_popcount(lane_bits(greater(other, F32(l)))));
    });
  }
  return count;
}

/// Parallel arrays, sorted by descending value, ties by ascending id.
struct Table {
  float* value;
  int32_t* id;

  bool before(int64_t a, int64_t b) const {
    return value[a] > value[b] || (value[a] == value[b] && id[a] < id[b]);
  }
  void swap(int64_t a, int64_t b) const {
    const float v = value[a];
    const int32_t i = id[a];
    value[a] = value[b];
    id[a] = id[b];
    value[b] = v;
    id[b] = i;
  }
  /// Restores the heap, whose root comes last in the order, below node `at`.
  void sift(int64_t at, int64_t size) const {
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
      if (child + 1 < size && before(child, child + 1)) ++child;
      if (!before(at, child)) return;
      swap(at, child);
    }
  }
  void sort(int64_t size) const {
    for (int64_t i = size / 2; i-- > 0;) sift(i, size);
    for (int64_t i = size; i-- > 1;) {
      swap(0, i);
      sift(0, i);
    }
  }
};

/// For the leader: the tokens down to the cut into the table, in any order; returns their number.
template <class E>
int64_t collect(const SampleSlot& slot, const LogitRow<E>& row, const RowCut& cut,
                const Table& table) {
  int64_t size = 0, ties = cut.ties;
  for (int64_t block = 0; block < row.num_blocks(); ++block) {
    if (slot.block_max[block] < cut.value) continue;
    row.for_block(block, [&](int64_t i, F32 l) {
      const int64_t left = row.size - i;
      uint32_t bits = lane_bits(at_least_mask(max(l, F32(-kInf)), F32(cut.value)) &
                                first(left < F32::kWidth ? static_cast<int>(left) : F32::kWidth));
      for (; bits != 0; bits &= bits - 1) {
        const int64_t token = i + __builtin_ctz(bits);
        const float value = row.at(token);
        if (value == cut.value && ties-- <= 0) continue;
        table.value[size] = value;
        table.id[size++] = static_cast<int32_t>(token);
      }
    });
  }
  return size;
}

template <class E>
void table_row(const TokenLogprobsParams& p, int64_t b, const Team& row_team,
               const SampleSlot& slot) {
  const LogitRow<E> row = {static_cast<const E*>(p.logits) + b * p.stride_logits_row, p.vocab_size};
  RowTeam team(row_team, slot, row.num_blocks());
  ScanPart part = {};
  part.raw_max = find_block_maxima(row, team.blocks, slot.block_max);
  const float row_max = team.all_reduce(part).raw_max;
  const RawLogprob logprob = find_normalizer(team, row, row_max);

  const int64_t token = p.token_ids[b];
  part = {};
  if (token >= 0) part.total = count_above(team, row, row.at(token));
  const uint64_t above = team.all_reduce(part).total;
  if (team.leads()) {
    p.logprob[b] = token >= 0 ? logprob(row.at(token)) : __builtin_nanf("");
    p.rank[b] = token >= 0 ? static_cast<int32_t>(above) + 1 : 0;
  }
  if (p.num_top == 0) return;

  RowCut cut = {};
  if (p.num_top < row.size) {
    const auto k = static_cast<uint64_t>(p.num_top);
    const MassScale unused = {row_max, 1.0f};
    const Bracket bracket = team.from_leader(
        [&] { return estimate_top_k(row, slot.block_max, unused, k, slot.scratch); });
    cut = cut_row<CountWeight, false>(team, row, unused, Target{k, 0.0f}, 0.0f, bracket);
  }
  if (!team.leads()) return;
  if (cut.ties == 0) {
    // All tokens, or all that are finite, of which there are too few: go on among the others.
    cut.value = -kInf;
    cut.ties = p.num_top - static_cast<int64_t>(cut.total);
  }
  const Table table = {p.top_logprobs + b * p.num_top, p.top_ids + b * p.num_top};
  const int64_t size = collect(slot, row, cut, table);
  table.sort(size);
  for (int64_t i = 0; i < size; ++i) table.value[i] = logprob(table.value[i]);
}

}  // namespace

void token_logprobs(const TokenLogprobsParams& p, const Team& team) {
  for_each_row(p.batch_size, p.vocab_size, p.workspace, team,
               [&](int64_t row, bool, const Team& row_team, const SampleSlot& slot) {
                 dispatch_dtype<float, BF16>(
                     p.dtype, [&]<class E>() { table_row<E>(p, row, row_team, slot); });
               });
}

}  // namespace lampo::cpu::LAMPO_ISA
