// SPDX-License-Identifier: Apache-2.0
// The definition of `sample`, to the bit, for both backends. All that decides which token is drawn
// is here or in deterministic_math.h and philox.h; the backends choose how to compute it.
//
//   l_i   processed logit of token i: float(logit), NaN read as -inf, then penalties, bias, mask.
//   order descending l, ties by ascending i. All comparisons are of floats.
//   y_i   = (l_i - max l) * scale, scale = log2(e) / temperature: base-2 exponent, two roundings.
//   m_i   = exp2_times_2_40(y_i): probability relative to the most likely token, times 2^40.
//   w_i   = m_i to the nearest integer: the mass. Sums of masses are exact in 64 bits (a row of up
//           to 2^23 tokens), hence the same in any order, on any number of threads. A token less
//           likely than the top one by 2^-41 has mass 0; the loss of a row of V tokens
//           is below V * 2^-41 of the top token's probability, 6e-8 for V = 128256.
//   top-k keeps the first k tokens of the order.
//   top-p keeps the shortest prefix of the order whose mass is at least
//           ceil(p * mass of what top-k kept), the product taken in double.
//   min-p keeps the tokens with m_i >= min_p * 2^40.
//   The log-probability of a kept token is (l_i - max l) / temperature - ln(kept mass / 2^40), in
//           double; it is 0 for the one token that a greedy row keeps, and -inf for cut tokens.
//
// The draw divides by exponential variates, which is the argmax of log-probability plus Gumbel
// noise (-ln of an exponential variate is a Gumbel variate): argmax over i of m_i / E_i draws i
// with probability m_i / sum m. It has two stages, exact by the same law: first among the blocks of
// 256 consecutive token ids, each with the mass of its kept tokens, then among the kept tokens of
// the chosen block. A row of 128256 tokens needs 757 variates instead of 128256,
// and the noise stays a function of (seed, position, token): a small change of the logits seldom
// changes the token, as it would with a random number sought in a running sum.
#pragma once

#include "common/deterministic_math.h"
#include "common/philox.h"

namespace lampo {

constexpr int64_t kSampleBlock = 256;
constexpr float kMassOne = 0x1p40f;  // the most likely token's mass
constexpr int64_t kMaxSampleVocab = int64_t{1} << 23;

enum SampleStatus : int32_t { kSampleOk = 0, kSampleNoCandidate = 1 };

/// log2(e) / temperature, finite.
LAMPO_HOST_DEVICE static inline float exponent_scale(float temperature) {
  const double scale = 1.4426950408889634 / static_cast<double>(temperature);
  return scale < 3.4e38 ? static_cast<float>(scale) : 3.4e38f;
}

/// ceil(p * total), at least 1 and at most total.
LAMPO_HOST_DEVICE static inline uint64_t top_p_target(float p, uint64_t total) {
  const double product = static_cast<double>(p) * static_cast<double>(total);
  uint64_t target = static_cast<uint64_t>(product);
  if (static_cast<double>(target) < product) ++target;
  if (target < 1) target = 1;
  return target < total ? target : total;
}

/// Log-probability of a kept token; `temperature` is 1 for a greedy row, log_mass is
/// ln(kept mass / 2^40). The last sum makes +0 of -0, which a maximum of zeros may have as sign.
LAMPO_HOST_DEVICE static inline float processed_logprob(float logit, float max, float temperature,
                                                        double log_mass) {
  const double excess = static_cast<double>(logit) - static_cast<double>(max);
  return static_cast<float>(excess / static_cast<double>(temperature) - log_mass + 0.0);
}

/// Repetition penalty, then presence and frequency: `count` is how often the output has the token.
LAMPO_HOST_DEVICE static inline float penalize(float logit, int32_t count, float repetition,
                                               float presence, float frequency) {
  const float l = logit > 0.0f ? div_rn(logit, repetition) : mul_rn(logit, repetition);
  if (count <= 0) return l;
  return sub_rn(l, add_rn(presence, mul_rn(frequency, static_cast<float>(count))));
}

enum class DrawStage : uint32_t { kTokens = 0, kBlocks = 1 };

/// Random words of candidates 4 * quad to 4 * quad + 3: tokens, or blocks, by number.
LAMPO_HOST_DEVICE static inline PhiloxCounter draw_noise(int64_t seed, int64_t position,
                                                         DrawStage stage, uint32_t quad) {
  const uint64_t s = static_cast<uint64_t>(seed);
  const uint64_t at = static_cast<uint64_t>(position);
  return philox4x32_10({{quad, static_cast<uint32_t>(stage), static_cast<uint32_t>(at),
                         static_cast<uint32_t>(at >> 32)}},
                       {{static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32)}});
}

/// The candidate with the highest score is drawn, of several the one with the lowest number. A
/// block's mass is converted from its integer sum, a token's is m_i.
LAMPO_HOST_DEVICE static inline float draw_score(float mass, uint32_t random) {
  return div_rn(mass, exponential_variate(random));
}

}  // namespace lampo
