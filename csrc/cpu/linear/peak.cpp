// SPDX-License-Identifier: Apache-2.0
// The most multiplications and additions that a thread can do: independent chains of the widest
// instruction that the kernels of this instruction set multiply with, on registers alone.
#include "cpu/kernel_table.h"
#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

namespace {

constexpr int kChains = 12;  // at least latency times instructions per cycle

/// Makes a register's value unknown to the compiler: products stay in the loop. No instruction.
template <class V>
[[gnu::always_inline]] inline void renew(V& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x.v));
#else
  asm("" : "+w"(x.v));
#endif
}

/// Replaces every chain by step(chain, x, y), `rounds` times; returns the number of steps.
template <class V, class Step>
int64_t steps(int64_t rounds, V x, Step step) {
  V y = x, chains[kChains] = {};
  renew(y);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (V& chain : chains) {
      renew(x);
      chain = step(chain, x, y);
    }
  }
  for (V& chain : chains) renew(chain);
  return rounds * kChains;
}

int64_t peak_f32(int64_t rounds) {
  return steps(rounds, F32(), [](F32 sum, F32 x, F32 y) { return fma(x, y, sum); }) * 2 *
         F32::kWidth;
}

int64_t peak_bf16([[maybe_unused]] int64_t rounds) {
#if defined(__AVX512BF16__)
  return steps(rounds, F32(), [](F32 sum, F32 x, F32 y) { return dot_bf16(x, y, sum); }) * 4 *
         F32::kWidth;
#else
  return 0;
#endif
}

#if defined(__AVX512VNNI__)

struct Bytes {
  __m512i v = _mm512_setzero_si512();
};
constexpr int kByteOperations = 128;
inline Bytes dot_bytes(Bytes sum, Bytes x, Bytes y) {
  return {_mm512_dpbusd_epi32(sum.v, x.v, y.v)};
}

#elif defined(__AVX2__)

struct Bytes {
  __m256i v = _mm256_setzero_si256();
};
constexpr int kByteOperations = 64;
inline Bytes dot_bytes(Bytes sum, Bytes x, Bytes y) {
  return {_mm256_add_epi16(sum.v, _mm256_maddubs_epi16(x.v, y.v))};
}

#elif defined(__SSE2__)

typedef short Shorts __attribute__((vector_size(16)));
typedef int Ints __attribute__((vector_size(16)));
struct Bytes {  // widened to 16 bits
  Ints v = {};
};
constexpr int kByteOperations = 16;
inline Bytes dot_bytes(Bytes sum, Bytes x, Bytes y) {
  const auto shorts = [](Bytes b) { return reinterpret_cast<Shorts>(b.v); };
  return {sum.v + __builtin_ia32_pmaddwd128(shorts(x), shorts(y))};
}

#endif

int64_t peak_int8([[maybe_unused]] int64_t rounds) {
#if defined(__SSE2__)
  return steps(rounds, Bytes(), [](Bytes sum, Bytes x, Bytes y) { return dot_bytes(sum, x, y); }) *
         kByteOperations;
#else
  return 0;
#endif
}

}  // namespace

int64_t peak(Products products, int64_t rounds) {
  switch (products) {
    case Products::kF32:
      return peak_f32(rounds);
    case Products::kBF16:
      return peak_bf16(rounds);
    case Products::kInt8:
      return peak_int8(rounds);
  }
  return 0;
}

}  // namespace lampo::cpu::LAMPO_ISA
