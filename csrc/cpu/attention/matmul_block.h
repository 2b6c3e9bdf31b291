// SPDX-License-Identifier: Apache-2.0
// C (+)= A B for the small matrices of attention: A [rows, depth] and C [rows, columns] in f32
// scratch, B [depth, columns] of any storage type. Rows returns a row of B by number, and Rows::add
// adds products. A block of kMaxBlockRows rows by kMaxBlockVectors vectors of C stays in registers
// (24 of AVX-512's 32, 12 of 16 elsewhere) for the whole depth. An element of C is one chain of
// multiply-adds in the order of depth, so the result does not depend on the blocking. A block
// prefetches one cache line per step for the caller: prefetches in one burst wait for one another.
#pragma once

#include "cpu/attention/attention_plan.h"
#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {

static constexpr int kMaxBlockRows = 6;
static constexpr int kMaxBlockVectors = F32::kWidth == 16 ? 4 : 2;

/// Rows of B at equal distances.
template <class T>
struct StridedRows {
  const T* base;
  int64_t stride;
  const T* operator()(int k) const { return base + k * stride; }
  static F32 add(F32 a, F32 b, F32 c) { return fma(a, b, c); }
};

/// Rows of B at any addresses, in pages.
template <class T>
struct PointerRows {
  const char* const* rows;
  const T* operator()(int k) const { return reinterpret_cast<const T*>(rows[k]); }
  static F32 add(F32 a, F32 b, F32 c) { return fma(a, b, c); }
};

/// Cache lines to prefetch: the first `bytes` bytes of the rows [row, end).
struct Prefetcher {
  const char* const* row = nullptr;
  const char* const* end = nullptr;
  int64_t bytes = 0;
  int64_t offset = 0;

  void step() {
    if (row == end) return;
    prefetch(*row + offset);
    offset += 64;
    if (offset >= bytes) {
      offset = 0;
      ++row;
    }
  }
};

template <int kRows, int kVectors, class Rows>
__attribute__((noinline)) static void multiply_block(const float* a, int64_t stride_a, Rows b,
                                                     int64_t column, Depth depth, float* c,
                                                     int64_t stride_c, bool accumulate,
                                                     Prefetcher& prefetcher) {
  Prefetcher ahead = prefetcher;
  F32 sums[kRows][kVectors];
  if (accumulate) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = load(c + r * stride_c + v * F32::kWidth);
    }
  }
  for (int k = depth.begin; k < depth.end; ++k) {
    const auto* row = b(k) + column;
    F32 values[kVectors];
    ahead.step();
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) values[v] = in_register(load(row + v * F32::kWidth));
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const F32 factor(a[r * stride_a + k]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Rows::add(factor, values[v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(c + r * stride_c + v * F32::kWidth, sums[r][v]);
  }
  prefetcher = ahead;
}

template <int kVectors, class Rows>
static inline void multiply_rows(int rows, const float* a, int64_t stride_a, Rows b, int64_t column,
                                 Depth depth, float* c, int64_t stride_c, bool accumulate,
                                 Prefetcher& prefetcher) {
  const auto run = [&]<int kRows>() {
    multiply_block<kRows, kVectors>(a, stride_a, b, column, depth, c, stride_c, accumulate,
                                    prefetcher);
  };
  switch (rows) {
    case 1:
      return run.template operator()<1>();
    case 2:
      return run.template operator()<2>();
    case 3:
      return run.template operator()<3>();
    case 4:
      return run.template operator()<4>();
    case 5:
      return run.template operator()<5>();
    default:
      return run.template operator()<6>();
  }
}

/// Multiplies up to kMaxBlockRows rows of C, over `vectors` vectors.
template <class Rows>
static inline void multiply(int rows, const float* a, int64_t stride_a, Rows b, Depth depth,
                            int vectors, float* c, int64_t stride_c, bool accumulate,
                            Prefetcher& prefetcher) {
  int v = 0;
  const auto run = [&]<int kVectors>() {
    for (; v + kVectors <= vectors; v += kVectors) {
      const int64_t column = v * F32::kWidth;
      multiply_rows<kVectors>(rows, a, stride_a, b, column, depth, c + column, stride_c, accumulate,
                              prefetcher);
    }
  };
  run.template operator()<kMaxBlockVectors>();
  if constexpr (kMaxBlockVectors > 2) run.template operator()<2>();
  run.template operator()<1>();
}

}  // namespace lampo::cpu::LAMPO_ISA
