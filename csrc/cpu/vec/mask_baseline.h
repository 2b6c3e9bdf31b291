// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/vec/vec_baseline.h"

namespace lampo::cpu::LAMPO_ISA {

struct Mask {
  typedef int32_t Native __attribute__((vector_size(16)));
  Native v;  // -1 or 0 per lane
};

static inline Mask greater(F32 a, F32 b) { return {a.v > b.v}; }
static inline Mask at_least_mask(F32 a, F32 b) { return {a.v >= b.v}; }
static inline Mask equal(F32 a, F32 b) { return {a.v == b.v}; }
static inline Mask operator&(Mask a, Mask b) { return {a.v & b.v}; }
static inline Mask operator|(Mask a, Mask b) { return {a.v | b.v}; }
static inline Mask and_not(Mask a, Mask b) { return {a.v & ~b.v}; }
static inline uint32_t lane_bits(Mask a) {
  return static_cast<uint32_t>((a.v[0] & 1) | (a.v[1] & 2) | (a.v[2] & 4) | (a.v[3] & 8));
}
static inline Mask mask_from_bits(uint32_t bits) {
  const Mask::Native lane = {1, 2, 4, 8};
  const int32_t all = static_cast<int32_t>(bits);
  return {(Mask::Native{all, all, all, all} & lane) == lane};
}
static inline Mask first(int n) { return mask_from_bits((1u << n) - 1u); }
static inline F32 blend(Mask mask, F32 x, F32 y) { return F32(mask.v ? x.v : y.v); }
static inline void compress(float* out, F32 a, Mask mask) {
  for (int i = 0; i < F32::kWidth; ++i) {
    *out = a.v[i];
    out += mask.v[i] & 1;
  }
}
static inline F32 low_bits_to_exponent(F32 a) {
  typedef uint32_t Words __attribute__((vector_size(16)));
  Words words;
  memcpy(&words, &a.v, sizeof(words));
  words <<= 23;
  F32 result;
  memcpy(&result.v, &words, sizeof(words));
  return result;
}

struct FixedLanes {
  uint64_t lane[F32::kWidth];
};
static inline FixedLanes fixed_lanes(F32 a) {
  FixedLanes result;
  for (int i = 0; i < F32::kWidth; ++i) result.lane[i] = round_to_u64(a.v[i]);
  return result;
}

class FixedSum {
 public:
  void add(FixedLanes a) {
    for (int i = 0; i < F32::kWidth; ++i) sums_[i] += a.lane[i];
  }
  void add(FixedLanes a, Mask mask) {
    for (int i = 0; i < F32::kWidth; ++i) {
      sums_[i] += a.lane[i] & static_cast<uint64_t>(static_cast<int64_t>(mask.v[i]));
    }
  }
  uint64_t total() const { return sums_[0] + sums_[1] + sums_[2] + sums_[3]; }

 private:
  uint64_t sums_[F32::kWidth] = {};
};

}  // namespace lampo::cpu::LAMPO_ISA
