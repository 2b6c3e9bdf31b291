// SPDX-License-Identifier: Apache-2.0
// From rows of logits to tokens: common/sampling.h says what, to the bit; this says how.
//
// 1. Maximum of each block of 256 tokens. A row with penalties, bias or a mask (or with +inf) is
//    copied to the workspace and edited there; other rows are never copied.
// 2. One pass computes all masses, sums those above an estimated bracket by block, and lists the
//    logits inside it; the exact cut is sought in the list (mass_select.h, bracket_estimate.h).
//    A small top-k passes over the row without masses and goes on with its list alone.
// 3. The draw of a block, then of one of its tokens (draw.h).
// 4. Where logprobs are wanted: the mass of all raw logits, another pass.
//
// Threads take whole rows; rows left over are shared block by block, with about five barriers each.
// Sums are integers, so neither shows in the result.
//
// Bytes: every logit once from memory (the next row is fetched during the mass pass) and once more
// from L2. A mass is 18 vector operations without fused multiply-adds, and 5 more to add it up in
// 64 bits: 43 us of a row of 128256 on one Zen 4 core (AVX-512), so arithmetic binds, not memory.
//
// us per row of 128256, one thread, 64 rows in turn, top-p 0.9 (tokens kept): N(0,1) logits 101
// (78k), 4 N(0,1) 82 (600), Zipf 110 (15k). AVX2 185, 128, 182; baseline 520, 322, 556. The same
// rows again and again: no filter 62, top-k 50 13, greedy 8. Logprobs add 54, or nothing where the
// mass of the raw row is at hand. torch's sort, cumsum and draw take 8900 with two threads.
//
// Rejected, with the same rows: a list that vectors append to where a branch says so, with token
// numbers and masses (145, 87, 152); that, and no fetching ahead (157, 101, 165); that, and all
// sums for all blocks (43 more for N(0,1)). Noise for every token: the draw's 757 variates
// take 2.3, 128256 would take 390 at that rate. A random number sought in the running sum of masses
// costs no more than the draw, but where the nucleus is wide a rounding error of the logits changes
// its token far more often.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/sampling/bracket_estimate.h"
#include "cpu/sampling/draw.h"
#include "cpu/sampling/row_teams.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

struct RowFilters {
  float temperature;
  int64_t top_k;  // vocab_size: off
  float top_p;
  float min_p;
};

RowFilters filters_of(const SampleParams& p, int64_t b) {
  const int64_t k = p.top_k != nullptr ? p.top_k[b] : 0;
  return {p.temperature[b], k > 0 && k < p.vocab_size ? k : p.vocab_size,
          p.top_p != nullptr ? p.top_p[b] : 1.0f, p.min_p != nullptr ? p.min_p[b] : 0.0f};
}

bool is_edited(const SampleParams& p, int64_t b) {
  const auto any = [b](const RaggedIds& list) {
    return list.ids != nullptr && list.cu[b] < list.cu[b + 1];
  };
  return any(p.penalties) || any(p.bias) || p.allowed_mask != nullptr;
}

bool wants_kept(const SampleParams& p) {
  return p.kept != nullptr || p.num_kept != nullptr || p.processed_logprobs != nullptr;
}

/// This thread's blocks of the processed logits: penalties, bias, mask.
template <class In>
void edit_row(const SampleParams& p, int64_t b, const LogitRow<In>& raw, Share blocks, float* out) {
  const Share tokens = {blocks.begin * kSampleBlock, blocks.end * kSampleBlock};
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    raw.for_block(block, [&](int64_t i, F32 l) {
      const int64_t left = raw.size - i;
      store_n(out + i, max(l, F32(-kInf)),
              left < F32::kWidth ? static_cast<int>(left) : F32::kWidth);
    });
  }
  const auto for_entries = [&](const RaggedIds& list, auto&& change) {
    if (list.ids == nullptr) return;
    for (int32_t j = list.cu[b]; j < list.cu[b + 1]; ++j) {
      const int32_t id = list.ids[j];
      if (id < tokens.begin || id >= tokens.end) continue;
      const float l = change(out[id], j);
      out[id] = l == l ? l : -kInf;
    }
  };
  for_entries(p.penalties, [&](float l, int32_t j) {
    return penalize(l, p.penalty_counts[j],
                    p.repetition_penalty != nullptr ? p.repetition_penalty[b] : 1.0f,
                    p.presence_penalty != nullptr ? p.presence_penalty[b] : 0.0f,
                    p.frequency_penalty != nullptr ? p.frequency_penalty[b] : 0.0f);
  });
  for_entries(p.bias, [&](float l, int32_t j) { return l + p.bias_values[j]; });
  if (p.allowed_mask == nullptr) return;
  const int32_t* mask = p.allowed_mask + b * p.stride_mask_row;
  for (int64_t i = tokens.begin; i < tokens.end && i < raw.size; i += F32::kWidth) {
    const int64_t left = raw.size - i;
    const int n = left < F32::kWidth ? static_cast<int>(left) : F32::kWidth;
    const uint32_t bits = static_cast<uint32_t>(mask[i / 32]) >> (i % 32);
    store_n(out + i, blend(mask_from_bits(bits), load_n(out + i, n), F32(-kInf)), n);
  }
}

/// The tokens left by steps (1) to (5); all but row_mass is known to the leader alone.
struct Survivors {
  Kept kept;
  uint64_t mass;          // of the blocks
  uint64_t row_mass = 0;  // of all tokens; 0: not computed
};

/// From a kept token's logit to its log-probability among all that are kept.
struct ProcessedLogprob {
  float max, temperature;
  double log_mass;

  ProcessedLogprob(float row_max, float row_temperature, uint64_t mass)
      : max(row_max),
        temperature(row_temperature),
        log_mass(__builtin_log(static_cast<double>(mass) / kMassOne)) {}
  float operator()(float l) const { return processed_logprob(l, max, temperature, log_mass); }
};

/// Step (3) to (5): fills slot.block_mass and says what is kept.
template <class E>
Survivors filter_row(RowTeam& team, const LogitRow<E>& row, MassScale mass, const RowFilters& f) {
  const SampleSlot& slot = team.slot;
  const float min_mass = f.min_p > 0.0f ? f.min_p * kMassOne : 0.0f;
  const auto cut_by_mass = [&](Target target) {
    const Bracket bracket = team.from_leader([&] {
      return estimate_bracket<MassWeight>(row, slot.block_max, mass, target, slot.scratch);
    });
    return min_mass > 0.0f ? cut_row<MassWeight, true>(team, row, mass, target, min_mass, bracket)
                           : cut_row<MassWeight, false>(team, row, mass, target, min_mass, bracket);
  };
  // All threads get the last kept token and sum the kept masses of their blocks.
  const auto keep = [&](const RowCut& cut, float least) {
    if (team.leads()) {
      slot.broadcast->number = static_cast<uint64_t>(
          cut.ties > 0 ? find_tie(row, slot.block_max, cut.value, cut.ties) : -1);
    }
    team.team.sync();
    Survivors s = {
        {cut.ties > 0 ? cut.value : -kInf, static_cast<int64_t>(slot.broadcast->number), least}, 0};
    ScanPart part = {};
    part.total = scan_kept(row, team.blocks, slot.block_max, mass, s.kept, slot.block_mass);
    s.mass = team.all_reduce(part).total;
    return s;
  };
  // The leader adds the kept tokens of the list to their blocks.
  const auto keep_listed = [&](const RowCut& cut) {
    Survivors s = {{cut.value, 0, min_mass}, 0};
    if (!team.leads()) return s;
    const int64_t place = find_tie_in_list(slot, cut.list_size, cut.value, cut.ties);
    s.mass = add_list(slot, row.num_blocks(), {cut.value, place, min_mass});
    s.kept.last = token_of_place(slot, row, cut.value, place);
    return s;
  };

  if (f.top_k < row.size) {
    const auto k = static_cast<uint64_t>(f.top_k);
    const Bracket bracket = team.from_leader(
        [&] { return estimate_top_k(row, slot.block_max, mass, k, slot.scratch); });
    RowCut cut = cut_row<CountWeight, false>(team, row, mass, Target{k, 0.0f}, 0.0f, bracket);
    if (cut.list_only) {
      // All that is left lies in the list: the leader goes on alone.
      if (team.leads()) {
        for (int64_t block = 0; block < row.num_blocks(); ++block) slot.block_mass[block] = 0;
        weigh_list(slot, cut.list_size, mass);
        if (f.top_p < 1.0f) {
          const uint64_t total = list_mass(slot, cut, mass);
          const uint64_t target = top_p_target(f.top_p, total);
          const ListCut found = cut_list<MassWeight>({slot.list, slot.list_mass, cut.list_size},
                                                     target, slot.scratch);
          cut.value = found.value;
          cut.ties = ties_needed<MassWeight>(found.value, target - found.above, mass);
        }
      }
      return keep_listed(cut);
    }
    if (f.top_p >= 1.0f) return keep(cut, min_mass);
    const Survivors left = keep(cut, 0.0f);
    const RowCut nucleus = cut_by_mass(Target{top_p_target(f.top_p, left.mass), 0.0f});
    return nucleus.listed ? keep_listed(nucleus) : keep(nucleus, min_mass);
  }
  if (f.top_p < 1.0f) {
    const RowCut nucleus = cut_by_mass(Target{0, f.top_p});
    Survivors s = nucleus.listed ? keep_listed(nucleus) : keep(nucleus, min_mass);
    s.row_mass = nucleus.total;
    return s;
  }
  Survivors s = keep(RowCut{}, min_mass);
  if (min_mass == 0.0f) s.row_mass = s.mass;
  return s;
}

struct Drawn {
  int64_t token;
  float processed_logprob;
  uint64_t row_mass = 0;  // of the processed row; 0: not computed
};

/// For the leader.
template <class E>
Drawn draw(const SampleSlot& slot, const LogitRow<E>& row, MassScale mass, float temperature,
           const Survivors& s, int64_t seed, int64_t position) {
  ExponentialDraw blocks(seed, position, DrawStage::kBlocks);
  const int64_t num_blocks = row.num_blocks();
  for (int64_t first = 0; first < num_blocks; first += kDrawCandidates) {
    float masses[kDrawCandidates];
    const int64_t left = num_blocks - first;
    const int count = left < kDrawCandidates ? static_cast<int>(left) : kDrawCandidates;
    for (int i = 0; i < count; ++i)
      masses[i] = static_cast<float>(static_cast<int64_t>(slot.block_mass[first + i]));
    blocks.add(masses, first, count);
  }
  float masses[kSampleBlock];
  const int64_t begin = blocks.chosen() * kSampleBlock;
  row.for_block(blocks.chosen(), [&](int64_t i, F32 l) {
    const F32 m = mass(l);
    store(masses + (i - begin), blend(s.kept(l, m, i), m, F32()));
  });
  const int64_t left = row.size - begin;
  ExponentialDraw tokens(seed, position, DrawStage::kTokens);
  tokens.add(masses, begin, left < kSampleBlock ? static_cast<int>(left) : kSampleBlock);
  const int64_t token = tokens.chosen();
  return {token, ProcessedLogprob(mass.max, temperature, s.mass)(row.at(token))};
}

/// Writes the optional outputs about the kept tokens: their marks, log-probabilities and number.
template <class E>
void write_kept(const SampleParams& p, int64_t b, RowTeam& team, const LogitRow<E>& row,
                MassScale mass, const Kept& kept, const ProcessedLogprob& logprob) {
  uint8_t* marks = p.kept != nullptr ? p.kept + b * p.stride_kept_row : nullptr;
  float* logprobs =
      p.processed_logprobs != nullptr ? p.processed_logprobs + b * p.stride_processed_row : nullptr;
  ScanPart part = {};
  for (int64_t block = team.blocks.begin; block < team.blocks.end; ++block) {
    row.for_block(block, [&](int64_t i, F32 l) {
      const Mask here = kept(l, mass(l), i);
      const uint32_t bits = lane_bits(here);
      part.total += static_cast<uint64_t>(__builtin_popcount(bits));
      const int64_t left = row.size - i;
      const int n = left < F32::kWidth ? static_cast<int>(left) : F32::kWidth;
      if (marks != nullptr) {
        for (int lane = 0; lane < n; ++lane) marks[i + lane] = bits >> lane & 1;
      }
      if (logprobs != nullptr) {
        float lanes[F32::kWidth];
        store(lanes, l);
        for (int lane = 0; lane < F32::kWidth; ++lane) lanes[lane] = logprob(lanes[lane]);
        store_n(logprobs + i, blend(here, load(lanes), F32(-kInf)), n);
      }
    });
  }
  if (p.num_kept == nullptr) return;
  const auto count = static_cast<int32_t>(team.all_reduce(part).total);
  if (team.leads()) p.num_kept[b] = count;
}

/// A row without a candidate.
void write_nothing_kept(const SampleParams& p, int64_t b, const RowTeam& team) {
  const int64_t begin = team.blocks.begin * kSampleBlock;
  int64_t end = team.blocks.end * kSampleBlock;
  if (end > p.vocab_size) end = p.vocab_size;
  for (int64_t i = begin; i < end; ++i) {
    if (p.kept != nullptr) p.kept[b * p.stride_kept_row + i] = 0;
    if (p.processed_logprobs != nullptr) {
      p.processed_logprobs[b * p.stride_processed_row + i] = -kInf;
    }
  }
  if (p.num_kept != nullptr && team.leads()) p.num_kept[b] = 0;
}

/// Steps (2) to (6) on processed logits.
template <class E>
Drawn sample_processed(const SampleParams& p, int64_t b, RowTeam& team, const LogitRow<E>& row,
                       float row_max) {
  const SampleSlot& slot = team.slot;
  const RowFilters f = filters_of(p, b);
  Drawn drawn = {-1, 0.0f};
  Kept kept = {row_max, 0, 0.0f};
  MassScale mass = {row_max, 0.0f};
  auto kept_mass = static_cast<uint64_t>(kMassOne);
  float temperature = 1.0f;
  if (f.temperature == 0.0f) {
    if (team.leads()) {
      drawn.token = find_tie(row, slot.block_max, row_max, 1);
      kept.last = drawn.token;
    }
  } else {
    mass.scale = exponent_scale(f.temperature);
    const Survivors s = filter_row(team, row, mass, f);
    kept = s.kept;
    kept_mass = s.mass;
    temperature = f.temperature;
    if (team.leads()) {
      drawn = draw(slot, row, mass, temperature, s, p.seeds[b],
                   p.positions != nullptr ? p.positions[b] : 0);
    }
    drawn.row_mass = s.row_mass;
  }
  if (!wants_kept(p)) return drawn;
  team.team.sync();
  if (team.leads()) {
    *slot.broadcast = {static_cast<uint64_t>(kept.last), kept.value, 0.0f, 0, kept_mass};
  }
  team.team.sync();
  kept.value = slot.broadcast->low;
  kept.last = static_cast<int64_t>(slot.broadcast->number);
  write_kept(p, b, team, row, mass, kept,
             ProcessedLogprob(row_max, temperature, slot.broadcast->mass));
  return drawn;
}

template <class In>
void sample_row(const SampleParams& p, int64_t b, bool has_next, const Team& row_team,
                const SampleSlot& slot) {
  const LogitRow<In> raw = {
      static_cast<const In*>(p.logits) + b * p.stride_logits_row, p.vocab_size,
      has_next ? static_cast<const In*>(p.logits) + (b + 1) * p.stride_logits_row : nullptr};
  const LogitRow<float> edited = {slot.row, p.vocab_size};
  RowTeam team(row_team, slot, raw.num_blocks());

  // (1), and the maxima of the blocks.
  ScanPart part = {};
  bool direct = !is_edited(p, b);
  if (direct) {
    part.raw_max = find_block_maxima(raw, team.blocks, slot.block_max);
  } else {
    if (p.logprobs != nullptr) part.raw_max = find_block_maxima(raw, team.blocks, slot.block_max);
    edit_row(p, b, raw, team.blocks, slot.row);
    find_block_maxima(edited, team.blocks, slot.block_max);
  }
  const float raw_max = team.all_reduce(part).raw_max;
  F32 maxima(-kInf);
  for_list(slot.block_max, raw.num_blocks(), -kInf,
           [&](F32 block_max, int64_t, int) { maxima = max(block_max, maxima); });
  float row_max = reduce_max(maxima);
  Drawn drawn = {-1, __builtin_nanf("")};
  if (row_max == kInf) {
    // The infinite tokens tie at the top, the others have probability 0.
    team.team.sync();
    const auto flatten = [&](const auto& row) {
      for (int64_t block = team.blocks.begin; block < team.blocks.end; ++block) {
        row.for_block(block, [&](int64_t i, F32 l) {
          const int64_t left = row.size - i;
          store_n(slot.row + i, blend(equal(l, F32(kInf)), F32(), F32(-kInf)),
                  left < F32::kWidth ? static_cast<int>(left) : F32::kWidth);
        });
      }
    };
    if (direct)
      flatten(raw);
    else
      flatten(edited);
    direct = false;
    find_block_maxima(edited, team.blocks, slot.block_max);
    team.team.sync();
    row_max = 0.0f;
  }
  if (row_max > -kInf) {
    drawn = direct ? sample_processed(p, b, team, raw, row_max)
                   : sample_processed(p, b, team, edited, row_max);
  } else if (wants_kept(p)) {
    write_nothing_kept(p, b, team);
  }
  if (team.leads()) {
    p.token_ids[b] = drawn.token;
    p.status[b] = drawn.token >= 0 ? kSampleOk : kSampleNoCandidate;
  }
  if (p.logprobs == nullptr) return;
  // At temperature 1 without edits the raw row's mass is known already.
  const bool known = direct && drawn.row_mass != 0 && p.temperature[b] == 1.0f;
  const RawLogprob raw_logprob =
      known ? normalizer(raw_max, drawn.row_mass) : find_normalizer(team, raw, raw_max);
  if (team.leads()) {
    p.logprobs[2 * b] = drawn.token >= 0 ? raw_logprob(raw.at(drawn.token)) : __builtin_nanf("");
    p.logprobs[2 * b + 1] = drawn.processed_logprob;
  }
}

}  // namespace

void sample(const SampleParams& p, const Team& team) {
  for_each_row(p.batch_size, p.vocab_size, p.workspace, team,
               [&](int64_t row, bool has_next, const Team& row_team, const SampleSlot& slot) {
                 dispatch_dtype<float, BF16>(p.dtype, [&]<class In>() {
                   sample_row<In>(p, row, has_next, row_team, slot);
                 });
               });
}

}  // namespace lampo::cpu::LAMPO_ISA
