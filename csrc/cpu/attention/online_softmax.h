// SPDX-License-Identifier: Apache-2.0
// The state of a row of attention: m, the largest score so far; l, the sum of e^(s - m); and
// acc = sum of e^(s - m) v. A state without keys is (-inf, 0, 0). Operations and their order do not
// depend on the batch, so a row's result is one definition (attention_plan.h). Masked keys
// contribute exact zeros. NaN scores make the row NaN.
#pragma once

#include <cmath>

#include "cpu/vec/math.h"

namespace lampo::cpu::LAMPO_ISA {

static constexpr float kMinusInfinity = -__builtin_inff();

/// a *= factor over n floats, n a multiple of kWidth.
static inline void scale_floats(float* a, F32 factor, int64_t n) {
  for (int64_t i = 0; i < n; i += F32::kWidth) store(a + i, load(a + i) * factor);
}

/// Run (m, l, acc) := run merged with (m, l, acc), over width floats.
static inline void fold_state(float* run_m, float* run_l, float* run_acc, float m, float l,
                              const float* acc, int64_t width) {
  if (m == kMinusInfinity && l == 0.0f) return;
  if (*run_m == kMinusInfinity && *run_l == 0.0f) {
    *run_m = m;
    *run_l = l;
    for (int64_t i = 0; i < width; i += F32::kWidth) store(run_acc + i, load(acc + i));
    return;
  }
  const float larger = *run_m > m ? *run_m : m;
  const F32 old_weight = exp_nonpositive(F32(*run_m - larger));
  const F32 new_weight = exp_nonpositive(F32(m - larger));
  *run_m = larger;
  store_n(run_l, fma(F32(l), new_weight, F32(*run_l) * old_weight), 1);
  for (int64_t i = 0; i < width; i += F32::kWidth) {
    store(run_acc + i, fma(load(acc + i), new_weight, load(run_acc + i) * old_weight));
  }
}

/// Scales and cap that turn dot products into scores, for one key tile.
struct ScoreRule {
  float softmax_scale;
  float soft_cap;        // 0: none
  const float* k_scale;  // of the tile's keys; null: 1
  const float* v_scale;
};

/// A row's view of a key tile: vectors [first, last) hold scores, keys [begin, end) are visible.
struct RowView {
  int first, last;
  int begin, end;
};

/// Turns the dot products of a row with a tile's keys into probabilities (times v_scale), and
/// updates m, l (kWidth partial sums) and acc.
static inline void update_state(float* scores, const RowView& view, const ScoreRule& rule, float* m,
                                float* l, float* acc, int64_t width) {
  constexpr int kWidth = F32::kWidth;
  static constexpr float kIndex[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const bool masked = view.begin > view.first * kWidth || view.end < view.last * kWidth;
  F32 largest(kMinusInfinity);
  for (int v = view.first; v < view.last; ++v) {
    F32 score = load(scores + v * kWidth);
    if (rule.k_scale != nullptr) score = score * load(rule.k_scale + v * kWidth);
    score = score * F32(rule.softmax_scale);
    if (rule.soft_cap != 0.0f) {
      score = F32(rule.soft_cap) * tanh(score * F32(1.0f / rule.soft_cap));
    }
    if (masked) {
      const F32 index = load(kIndex) + F32(static_cast<float>(v * kWidth));
      score = select_less(index, F32(static_cast<float>(view.end)), score, F32(kMinusInfinity));
      score = select_less(index, F32(static_cast<float>(view.begin)), F32(kMinusInfinity), score);
    }
    store(scores + v * kWidth, score);
    largest = max(largest, score);
  }
  const float tile_m = reduce_max(largest);
  F32 sum = load(l);
  if (tile_m > *m) {
    const F32 correction = exp_nonpositive(F32(*m - tile_m));
    sum = sum * correction;
    scale_floats(acc, correction, width);
    *m = tile_m;
  }
  const F32 shift(*m == kMinusInfinity ? 0.0f : *m);
  for (int v = view.first; v < view.last; ++v) {
    F32 weight = exp_nonpositive(load(scores + v * kWidth) - shift);
    sum = sum + weight;
    if (rule.v_scale != nullptr) weight = weight * load(rule.v_scale + v * kWidth);
    store(scores + v * kWidth, weight);
  }
  store(l, sum);
}

/// out = acc / l in width floats (in place), with the sink in the sum; returns the natural-log lse.
static inline float finish_state(float m, float l, float* acc, const float* sink, int64_t width) {
  if (l == 0.0f) {
    for (int64_t i = 0; i < width; i += F32::kWidth) store(acc + i, F32());
    return kMinusInfinity;
  }
  F32 weight(1.0f);
  if (sink != nullptr) {
    const float larger = m > *sink ? m : *sink;
    weight = exp_nonpositive(F32(m - larger));
    const F32 sink_weight = exp_nonpositive(F32(*sink - larger));
    store_n(&l, fma(F32(l), weight, sink_weight), 1);
    m = larger;
  }
  const F32 factor = weight / F32(l);
  // + 0 makes -0, which depends on how many masked keys were added, +0.
  for (int64_t i = 0; i < width; i += F32::kWidth)
    store(acc + i, fma(load(acc + i), factor, F32()));
  return m + std::log(l);
}

}  // namespace lampo::cpu::LAMPO_ISA
