// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/wgmma.cuh: the lanes of a warp meet, and simt/async_proxy.h
// computes. Sums of float run in the order of k; hardware's order and rounding differ.
#pragma once

#include <type_traits>

#include "common/numeric.h"
#include "cuda/device/fragment.cuh"
#include "cuda/device/ptx/mbarrier.cuh"

namespace lampo::cuda {

inline uint64_t lines_along_k(const void* from) {
  return (shared_address(from) & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

inline uint64_t lines_along_columns(const void* from, unsigned between_halves) {
  return (shared_address(from) & 0x3ffff) >> 4 | uint64_t{between_halves >> 4} << 16 |
         uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}

inline uint64_t moved(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes / 16);
}

/// All lanes are at the same instruction, as `.sync.aligned` requires.
inline void meet(const char* what) { simt::exchange(what, 0xffffffffu, 0); }

inline void fence_products() {
  meet("wgmma.fence");
  simt::fence_products();
}

inline void commit_products() {
  meet("wgmma.commit_group");
  simt::commit_products();
}

template <int kPending>
inline void wait_products() {
  meet("wgmma.wait_group");
  simt::wait_products(kPending);
}

template <int kFragments>
inline void settle(FragmentC<float> (&c)[kFragments]) {
  simt::check_settled(c->value);
}
template <int kFragments>
inline void settle(FragmentA (&)[kFragments]) {}

template <class T>
inline void multiply_warp(FragmentC<float>* c, int fragments, const FragmentA* a, bool add,
                          uint64_t a_descriptor, uint64_t b_descriptor) {
  static_assert(std::is_same_v<T, BF16> || std::is_same_v<T, F16>);
  struct Lane {
    float* c;
    const uint32_t* a;
    uint64_t descriptors[2];
  };
  const auto lanes =
      simt::exchange("wgmma.mma_async", 0xffffffffu,
                     Lane{c->value, a != nullptr ? a->reg : nullptr, {a_descriptor, b_descriptor}});
  simt::Product product{.bf16 = std::is_same_v<T, BF16>,
                        .columns = 8 * fragments,
                        .a_in_registers = a != nullptr,
                        .b_transposed = a != nullptr,
                        .add = add,
                        .acc = {},
                        .a = {},
                        .a_descriptor = a_descriptor,
                        .b_descriptor = b_descriptor};
  for (int lane = 0; lane < 32; ++lane) {
    product.acc[lane] = lanes[lane].c;
    product.a[lane] = lanes[lane].a;
    if (lanes[lane].descriptors[0] != a_descriptor || lanes[lane].descriptors[1] != b_descriptor) {
      simt::fail("multiplies by wgmma with other descriptors than a lane of its warp");
    }
  }
  simt::issue_product(product);
}

template <class T>
inline void multiply_add_shared(FragmentC<float> (&c)[16], uint64_t a, uint64_t b, bool add) {
  multiply_warp<T>(c, 16, nullptr, add, a, b);
}

template <class T, int kFragments>
inline void multiply_add_registers(FragmentC<float> (&c)[kFragments], const FragmentA& a,
                                   uint64_t b) {
  static_assert(kFragments == 8 || kFragments == 16);
  multiply_warp<T>(c, kFragments, &a, true, 0, b);
}

}  // namespace lampo::cuda
