// SPDX-License-Identifier: Apache-2.0
// SIMD interface of the kernels: F32 is kWidth floats, with loads from and stores to every storage
// type.
// One of three headers defines it, each inside namespace lampo::cpu::<isa>:
//
//   F32{x}                    all lanes x            F32{}  all lanes 0
//   a + b, a - b, a * b, a / b, -a, max(a, b), min(a, b), round_even(a)
//   fma(a, b, c)              a * b + c, fused where the ISA has it
//   load(p), load_n(p, n)     n lanes from float, BF16, F16, F8E4M3, int8_t, uint8_t; the rest 0
//   store(p, a), store_n      to float, BF16, F16, F8E4M3, int8_t (rounded to even, saturated)
//   reduce_add(a), reduce_max(a)   in one fixed order
//   store_quad_max(p, a)      largest value of every four lanes, kWidth / 4 floats
//   reduce_add(a, b, c, d)    their sums, in the first four lanes
//   exp2_int(n)               2^n for integral n in [-127, 128]: 0 and inf at the ends
//   select_less(a, b, x, y)   a < b ? x : y, lane by lane
//   butterfly<n>(a)           sums and differences of the lanes i and i ^ n
//   in_register(a)            a, loaded once: keeps the compiler from loading it at each use
//   load_twice(p)             kWidth / 2 floats, each in two neighbouring lanes
//   load_pair(p)              p[0] and p[1], by turns
//   load_f8_words(p, even, odd)    kWidth / 2 words of four E4M3 codes that are numbers, times
//                             2^-8: codes 0 and 2 in neighbouring lanes of even, 1 and 3 of odd
//   dot_bf16(a, b, c)         c + a1 b1 + a0 b0 on the two BF16 in each lane of a and b; this and
//   load_pairs(p), load_pairs_n(p, n)   two BF16 a lane, n of them; only where kHasDotBF16
#pragma once

#if defined(__AVX512F__)
#include "cpu/vec/vec_avx512.h"
#elif defined(__AVX2__)
#include "cpu/vec/vec_avx2.h"
#else
#include "cpu/vec/vec_baseline.h"
#endif

#include <utility>

namespace lampo::cpu::LAMPO_ISA {

#if !defined(__AVX512F__)
static inline F32 reduce_add(F32 a, F32 b, F32 c, F32 d) {
  const float sums[4] = {reduce_add(a), reduce_add(b), reduce_add(c), reduce_add(d)};
  return load_n(sums, 4);
}
#endif

/// Lane i of a Hadamard transform's step: a[i] + a[i + n], or a[i - n] - a[i] if i has the bit n.
template <int n>
static inline F32 butterfly(F32 a) {
  return [&]<int... i>(std::integer_sequence<int, i...>) {
    const decltype(a.v) signs = {(i & n ? -1.0f : 1.0f)...};
    return F32(__builtin_shufflevector(a.v, a.v, (i ^ n)...) + signs * a.v);
  }(std::make_integer_sequence<int, F32::kWidth>());
}

/// Prefetches the cache line of p, any address, into the second-level cache, which has more
/// outstanding misses than the first.
static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
/// Prefetches into the first-level cache, for data needed at once.
static inline void prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }

}  // namespace lampo::cpu::LAMPO_ISA
