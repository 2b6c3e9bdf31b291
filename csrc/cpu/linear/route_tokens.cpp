// SPDX-License-Identifier: Apache-2.0
// The experts of every token, their weights, and all pairs of a token and an expert sorted by
// expert (RouteParams).
//
// Work: threads share the tokens; then one of them sorts the pairs by counting. A token reads its
// logits twice, a pair is written three times: little beside the experts' weights.
#include "cpu/kernel_table.h"
#include "cpu/vec/math.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// Logits below which one thread chooses for all tokens: cheaper than a barrier.
constexpr int64_t kFewLogits = 4096;

/// e^(logit - largest), 0 in lanes from n on.
inline F32 exponential(const float* logits, float largest, int n) {
  return keep_n(exp_nonpositive(load_n(logits, n) - F32(largest)), n);
}

/// Chooses the experts of a token. NaN counts as -inf among logits, and makes all weights NaN.
void choose(const RouteParams& p, int64_t token) {
  const float* logits = p.logits + token * p.stride_logits_token;
  int32_t* experts = p.experts + token * p.top_k;
  float* weights = p.weights + token * p.top_k;
  const auto key = [&](int64_t expert) {
    return __builtin_isnan(logits[expert]) ? -__builtin_inff() : logits[expert];
  };
  float* keys = weights;  // of the chosen, descending
  int64_t count = 0;
  for (int64_t expert = 0; expert < p.num_experts; ++expert) {
    const float value = key(expert);
    if (count == p.top_k && !(value > keys[count - 1])) continue;
    int64_t at = count < p.top_k ? count++ : count - 1;
    for (; at > 0 && value > keys[at - 1]; --at) {
      keys[at] = keys[at - 1];
      experts[at] = experts[at - 1];
    }
    keys[at] = value;
    experts[at] = static_cast<int32_t>(expert);
  }
  const float largest = keys[0];
  F32 sum;
  for_each_vector(p.num_experts,
                  [&](int64_t i, int n) { sum = sum + exponential(logits + i, largest, n); });
  float total = reduce_add(sum);
  float chosen = 0.0f;
  float lanes[F32::kWidth];
  for (int64_t i = 0; i < p.top_k; i += F32::kWidth) {
    const int n = p.top_k - i < F32::kWidth ? static_cast<int>(p.top_k - i) : F32::kWidth;
    store(lanes, exponential(keys + i, largest, n));
    for (int lane = 0; lane < n; ++lane) {
      weights[i + lane] = lanes[lane];
      chosen += lanes[lane];
    }
  }
  if (p.normalized && !__builtin_isnan(total)) total = chosen;
  for (int64_t i = 0; i < p.top_k; ++i) weights[i] = weights[i] / total;
}

/// Sorts the pairs by expert; those of an expert stay in the order of their tokens.
void sort_pairs(const RouteParams& p) {
  const int64_t num_pairs = p.num_tokens * p.top_k;
  int32_t* offsets = p.offsets;
  for (int64_t expert = 0; expert <= p.num_experts; ++expert) offsets[expert] = 0;
  for (int64_t pair = 0; pair < num_pairs; ++pair) ++offsets[p.experts[pair] + 1];
  for (int64_t expert = 0; expert < p.num_experts; ++expert) offsets[expert + 1] += offsets[expert];
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const int32_t row = offsets[p.experts[pair]]++;
    p.rows[pair] = row;
    p.x_rows[row] = static_cast<int32_t>(pair / p.top_k);
  }
  // Every offset has moved to the next one's place.
  for (int64_t expert = p.num_experts; expert > 0; --expert) offsets[expert] = offsets[expert - 1];
  offsets[0] = 0;
}

}  // namespace

void route_tokens(const RouteParams& p, const Team& team) {
  const bool alone = p.num_tokens * p.num_experts <= kFewLogits;
  if (alone && team.rank != 0) return;
  const Share tokens = alone ? Share{0, p.num_tokens} : share_of(p.num_tokens, team);
  for (int64_t token = tokens.begin; token < tokens.end; ++token) choose(p, token);
  if (!alone) team.sync();
  if (team.rank == 0) sort_pairs(p);
}

}  // namespace lampo::cpu::LAMPO_ISA
