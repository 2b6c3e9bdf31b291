// SPDX-License-Identifier: Apache-2.0
// The two products of a warp: scores S = Q K^T, and acc += P V, by mma.sync m16n8k16.
//
// Cache elements of 2 bytes: ldmatrix gives fragments of K and, transposed, of V. Elements of 1
// byte:
// ldmatrix treats two as one, so a register holds four consecutive dims of a key of K, or two
// neighbouring dims of two keys of V, which become pairs of T in registers. Dims are then permuted
// within 16: in the sums of S, where Q in shared memory has the same order, and in the columns of
// acc, where store_rows() restores it.
#pragma once

#include "cuda/attention/traits.cuh"
#include "cuda/device/bytes.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/ptx/matrix.cuh"

namespace lampo::cuda {

template <class Traits>
using Scores = FragmentC<float>[Traits::kRowBlocks][Traits::kWarpKeys / 8];
template <class Traits>
using Accumulators = FragmentC<float>[Traits::kRowBlocks][Traits::kHeadDim / 8];

/// Stores 8 dims of a row of q, at `chunk`, in the order of load_q_fragment().
template <class Traits>
__device__ inline void store_q(uint4* q, int row, int chunk, const uint4& dims) {
  if constexpr (Traits::kCacheBytes == 2) {
    q[Traits::q_position(row, chunk)] = dims;
  } else {
    // Dims 4 t + (0, 1) are stored as dims 2 t + (0, 1) of a fragment, 4 t + (2, 3) as 8 + 2 t +
    // (0, 1).
    const int even = chunk & ~1, half = chunk & 1;
    const auto at = [&](int c) {
      return reinterpret_cast<uint2*>(q + Traits::q_position(row, c)) + half;
    };
    *at(even) = {dims.x, dims.z};
    *at(even + 1) = {dims.y, dims.w};
  }
}

/// Loads 16 rows from `row` on, 16 dims from 16 * step on.
template <class Traits>
__device__ inline FragmentA load_q_fragment(const uint4* q, int row, int step, int lane) {
  constexpr int kChunks = Traits::kQChunks;
  FragmentA a;
  load_matrices(a.reg,
                q + (row + lane % 16) * kChunks + chunk_of_pair<kChunks>(lane, step, lane / 16));
  return a;
}

/// Scores of the warp's rows, from `row` on, and its keys, from `key` of the tile on.
template <class Traits>
__device__ inline void multiply_q_k(Scores<Traits>& scores, const uint4* q, int row, const uint4* k,
                                    int key, int lane) {
  using T = typename Traits::Element;
  using Cache = typename Traits::CacheElement;
  constexpr int kChunks = Traits::kKvChunks;
  constexpr int kSteps = 3 - Traits::kCacheBytes;  // of 16 dims, per two chunks of a row
#pragma unroll
  for (int m = 0; m < Traits::kRowBlocks; ++m) {
#pragma unroll
    for (int n = 0; n < Traits::kWarpKeys / 8; ++n) scores[m][n] = {};
  }
#pragma unroll(Traits::kUnrolled)
  for (int pair = 0; pair < kChunks / 2; ++pair) {
    FragmentA a[kSteps][Traits::kRowBlocks];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int m = 0; m < Traits::kRowBlocks; ++m) {
        a[step][m] = load_q_fragment<Traits>(q, row + 16 * m, pair * kSteps + step, lane);
      }
    }
#pragma unroll
    for (int block = 0; block < Traits::kWarpKeys / 16; ++block) {
      uint32_t reg[4];  // keys 0 to 7 of two chunks, then keys 8 to 15
      load_matrices(reg, k + (key + 16 * block + lane / 16 * 8 + lane % 8) * kChunks +
                             chunk_of_pair<kChunks>(lane, pair, lane / 8 % 2));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          FragmentB b;
          if constexpr (Traits::kCacheBytes == 2) {
            b = {{reg[2 * half], reg[2 * half + 1]}};
          } else {
            const uint32_t bytes = reg[2 * half + step];
            b = {{pair_of_bytes<Cache, 0, 1>(bytes), pair_of_bytes<Cache, 2, 3>(bytes)}};
          }
#pragma unroll
          for (int m = 0; m < Traits::kRowBlocks; ++m) {
            multiply_add<T>(scores[m][2 * block + half], a[step][m], b);
          }
        }
      }
    }
  }
}

/// acc += weights (in `scores`) times the V rows of the warp's keys, from `key` of the tile on.
template <class Traits>
__device__ inline void multiply_p_v(Accumulators<Traits>& acc, const Scores<Traits>& scores,
                                    const uint4* v, int key, int lane) {
  using T = typename Traits::Element;
  using Cache = typename Traits::CacheElement;
  constexpr int kChunks = Traits::kKvChunks;
#pragma unroll
  for (int block = 0; block < Traits::kWarpKeys / 16; ++block) {
    FragmentA a[Traits::kRowBlocks];
#pragma unroll
    for (int m = 0; m < Traits::kRowBlocks; ++m) {
      const auto& low = scores[m][2 * block].value;
      const auto& high = scores[m][2 * block + 1].value;
      a[m] = {{pack<T>(low[0], low[1]), pack<T>(low[2], low[3]), pack<T>(high[0], high[1]),
               pack<T>(high[2], high[3])}};
    }
#pragma unroll
    for (int pair = 0; pair < kChunks / 2; ++pair) {
      uint32_t reg[4];  // keys 0 to 7 and 8 to 15 of a chunk, then of the next
      load_matrices<true>(reg, v + (key + 16 * block + lane % 16) * kChunks +
                                   chunk_of_pair<kChunks>(lane, pair, lane / 16));
#pragma unroll
      for (int chunk = 0; chunk < 2; ++chunk) {
        const uint32_t first = reg[2 * chunk], second = reg[2 * chunk + 1];
        const int n = 2 * pair + chunk;
        if constexpr (Traits::kCacheBytes == 2) {
          const FragmentB b{{first, second}};
#pragma unroll
          for (int m = 0; m < Traits::kRowBlocks; ++m) multiply_add<T>(acc[m][n], a[m], b);
        } else {
          const FragmentB even{
              {pair_of_bytes<Cache, 0, 2>(first), pair_of_bytes<Cache, 0, 2>(second)}};
          const FragmentB odd{
              {pair_of_bytes<Cache, 1, 3>(first), pair_of_bytes<Cache, 1, 3>(second)}};
#pragma unroll
          for (int m = 0; m < Traits::kRowBlocks; ++m) {
            multiply_add<T>(acc[m][2 * n], a[m], even);
            multiply_add<T>(acc[m][2 * n + 1], a[m], odd);
          }
        }
      }
    }
  }
}

/// Stores a lane's part of 16 rows of acc to shared memory, in the order of dims.
template <class Traits>
__device__ inline void store_rows(float (*to)[Traits::kHeadDim + 8],
                                  const FragmentC<float> (&acc)[Traits::kHeadDim / 8], int lane) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* row = to[8 * half + lane / 4];
    if constexpr (Traits::kCacheBytes == 2) {
#pragma unroll
      for (int n = 0; n < Traits::kHeadDim / 8; ++n) {
        const auto& value = acc[n].value;
        store_vector<float, 2>(row + 8 * n + lane % 4 * 2, {value[2 * half], value[2 * half + 1]});
      }
    } else {
#pragma unroll
      for (int n = 0; n < Traits::kHeadDim / 8; n += 2) {
        const auto &even = acc[n].value, &odd = acc[n + 1].value;
        store_vector<float, 4>(row + 8 * n + lane % 4 * 4, {even[2 * half], odd[2 * half],
                                                            even[2 * half + 1], odd[2 * half + 1]});
      }
    }
  }
}

}  // namespace lampo::cuda
