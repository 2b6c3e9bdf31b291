// SPDX-License-Identifier: Apache-2.0
// Guesses where a row's order is cut, from the maxima of its blocks, which are known exactly and
// among which are most of the heavy tokens, and a sample of the others. A wrong guess costs another
// pass over the row, never a wrong result.
#pragma once

#include "cpu/sampling/mass_select.h"

namespace lampo::cpu::LAMPO_ISA {

constexpr int64_t kSampleChunks = 128;
constexpr int64_t kSampleChunk = 16;  // tokens, a cache line of float32
constexpr float kSigmas = 3.5f;
constexpr int kBisections = 14;
/// If at most this many tokens lie in and above the bracket, all are listed: cheap, and the bracket
/// cannot lie too low.
constexpr float kFewTokens = 2048.0f;

/// Values with weights, of which those from `num_known` on stand for `multiple` tokens each.
struct WeightSample {
  float* value;
  float* weight;
  int64_t num_known;
  int64_t size;
  float multiple;

  struct Sums {
    float weight, variance;
  };
  /// Estimated weight of the row's tokens with l >= t, and that estimate's variance: every
  /// sampled token stands for a Poisson number of its like.
  Sums from(float t) const {
    F32 known, sampled, squares;
    for_list(value, num_known, -kInf, [&](F32 l, int64_t i, int n) {
      known = known + blend(at_least_mask(l, F32(t)), load_n(weight + i, n), F32());
    });
    for_list(value + num_known, size - num_known, -kInf, [&](F32 l, int64_t i, int n) {
      const F32 w = blend(at_least_mask(l, F32(t)), load_n(weight + num_known + i, n), F32());
      sampled = sampled + w;
      squares = fma(w, w, squares);
    });
    return {reduce_add(known) + reduce_add(sampled), reduce_add(squares)};
  }
  float count_from(float t) const {
    int known = 0, sampled = 0;
    for_list(value, num_known, -kInf, [&](F32 l, int64_t, int) {
      known += __builtin_popcount(lane_bits(at_least_mask(l, F32(t))));
    });
    for_list(value + num_known, size - num_known, -kInf, [&](F32 l, int64_t, int) {
      sampled += __builtin_popcount(lane_bits(at_least_mask(l, F32(t))));
    });
    return static_cast<float>(known) + multiple * static_cast<float>(sampled);
  }
};

template <class Weight, class E>
static inline WeightSample take_sample(const LogitRow<E>& row, const float* block_max,
                                       MassScale mass, float* scratch) {
  const int64_t num_blocks = row.num_blocks();
  const int64_t padded = (num_blocks + kListSlack - 1) / kListSlack * kListSlack;
  WeightSample sample = {scratch, scratch + padded + kSampleChunks * kSampleChunk, padded, padded,
                         1.0f};
  for (int64_t i = 0; i < padded; i += F32::kWidth) {
    const int64_t left = num_blocks - i;
    const F32 l = left <= 0
                      ? F32(-kInf)
                      : load_or_lowest(block_max + i,
                                       left < F32::kWidth ? static_cast<int>(left) : F32::kWidth);
    store(sample.value + i, l);
    store(sample.weight + i, Weight::kMass ? mass(l) : F32(1.0f));
  }
  const int64_t chunks = num_blocks < kSampleChunks ? num_blocks : kSampleChunks;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t block = chunk * num_blocks / chunks;
    const int64_t begin = block * kSampleBlock + chunk * 7 * kSampleChunk % kSampleBlock;
    if (begin + kSampleChunk > row.size) continue;
    for (int64_t i = 0; i < kSampleChunk; i += F32::kWidth) {
      const F32 l = load(row.data + begin + i);
      // A block's maximum is known already.
      const F32 other = blend(equal(l, F32(block_max[block])), F32(-kInf), l);
      store(sample.value + sample.size, other);
      store(sample.weight + sample.size, Weight::kMass ? mass(other) : F32(1.0f));
      sample.size += F32::kWidth;
    }
  }
  const int64_t sampled = sample.size - padded;
  if (sampled > 0) {
    sample.multiple = static_cast<float>(row.size - num_blocks) / static_cast<float>(sampled);
    for (int64_t i = padded; i < sample.size; i += F32::kWidth) {
      store(sample.weight + i, load(sample.weight + i) * F32(sample.multiple));
    }
  }
  return sample;
}

template <class Weight, class E>
static inline Bracket estimate_bracket(const LogitRow<E>& row, const float* block_max,
                                       MassScale mass, Target target, float* scratch) {
  if (row.size <= kListCapacity / 4) return kWholeRow;
  const WeightSample sample = take_sample<Weight>(row, block_max, mass, scratch);
  F32 least(kInf);
  for_list(sample.value, sample.size, -kInf, [&](F32 l, int64_t, int) {
    least = min(least, blend(greater(l, F32(-kInf)), l, F32(kInf)));
  });
  float bottom = -reduce_max(-least);
  if (Weight::kMass) {
    const float reach = mass.max - 64.0f / mass.scale;  // masses below are 0
    bottom = bottom > reach ? bottom : reach;
  }
  if (!(bottom < mass.max)) return kWholeRow;

  // The excess of weight(l >= t) over the target, and its deviation.
  const WeightSample::Sums all = sample.from(kLowestFinite);
  const float p = target.p;
  const float goal = p != 0.0f ? p * all.weight : static_cast<float>(target.weight);
  const auto excess = [&](float t, float sign) {
    const WeightSample::Sums upper = sample.from(t);
    const float variance =
        (1.0f - p) * (1.0f - p) * upper.variance + p * p * (all.variance - upper.variance);
    return sign * (upper.weight - goal) - kSigmas * __builtin_sqrtf(variance);
  };
  // The highest low end that is surely low enough, the lowest high end surely high enough.
  Bracket bracket = kWholeRow;
  if (excess(bottom, 1.0f) > 0.0f) {
    float good = bottom, bad = mass.max;
    for (int i = 0; i < kBisections; ++i) {
      const float t = 0.5f * good + 0.5f * bad;
      (excess(t, 1.0f) > 0.0f ? good : bad) = t;
    }
    bracket.low = good;
  }
  if (sample.count_from(bracket.low) > kFewTokens && excess(mass.max, -1.0f) > 0.0f) {
    float good = mass.max, bad = bracket.low > bottom ? bracket.low : bottom;
    for (int i = 0; i < kBisections; ++i) {
      const float t = 0.5f * good + 0.5f * bad;
      (excess(t, -1.0f) > 0.0f ? good : bad) = t;
    }
    bracket.high = good;
  }
  return bracket;
}

/// A bracket for the k largest: there are k blocks whose maxima reach the k-th largest maximum.
template <class E>
static inline Bracket estimate_top_k(const LogitRow<E>& row, const float* block_max, MassScale mass,
                                     uint64_t k, float* scratch) {
  const int64_t num_blocks = row.num_blocks();
  if (k <= static_cast<uint64_t>(num_blocks)) {
    const float low = cut_list<CountWeight>({block_max, nullptr, num_blocks}, k, scratch).value;
    return {low > kLowestFinite ? low : kLowestFinite, kInf};
  }
  return estimate_bracket<CountWeight>(row, block_max, mass, Target{k, 0.0f}, scratch);
}

}  // namespace lampo::cpu::LAMPO_ISA
