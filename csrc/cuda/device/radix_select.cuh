// SPDX-License-Identifier: Apache-2.0
// Finds, by a block of threads, where weights that are sorted by a key reach a target: histograms
// of 11 bits of the key at a time, in shared memory, exact and so the same in any order.
#pragma once

#include "cuda/device/block.cuh"

namespace lampo::cuda {

using Weight = unsigned long long;

inline constexpr int kRadixBits = 11;
inline constexpr int kRadixBins = 1 << kRadixBits;

/// 64-bit sums from atomics of 32 bits, which shared memory has; 64 bits would be a loop.
struct WeightHistogram {
  unsigned low[kRadixBins], high[kRadixBins];

  __device__ void clear(int thread, int num_threads) {
    for (int bin = thread; bin < kRadixBins; bin += num_threads) low[bin] = high[bin] = 0;
  }
  __device__ void add(int bin, Weight weight) {
    const auto part = static_cast<unsigned>(weight);
    const unsigned before = atomicAdd(&low[bin], part);
    const unsigned carry = before + part < before ? 1 : 0;
    const unsigned rest = static_cast<unsigned>(weight >> 32) + carry;
    if (rest != 0) atomicAdd(&high[bin], rest);
  }
  /// As add() of each, without a branch for each. Weights whose low half is 0 add it to any bin, a
  /// lane's own, as many tokens without mass share a bin.
  template <int N>
  __device__ void add_all(const int (&bin)[N], const Weight (&weight)[N]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    unsigned rest[N], any = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const auto part = static_cast<unsigned>(weight[i]);
      const unsigned before = atomicAdd(&low[part != 0 ? bin[i] : lane], part);
      rest[i] = static_cast<unsigned>(weight[i] >> 32) + (before + part < before ? 1 : 0);
      any |= rest[i];
    }
    if (any == 0) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (rest[i] != 0) atomicAdd(&high[bin[i]], rest[i]);
    }
  }
  __device__ Weight operator()(int bin) const {
    return static_cast<Weight>(high[bin]) << 32 | low[bin];
  }
};

/// Folds the values of all threads of a block, in every thread. `storage` is used from barrier to
/// barrier, so again at once.
template <class T>
struct FoldStorage {
  T warp[kMaxWarps];
};

template <class T, class Fold>
__device__ inline T block_fold(T value, Fold fold, FoldStorage<T>& storage) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value = fold(value, shuffle_xor(value, mask));
  sync_block();
  if (threadIdx.x % kWarpSize == 0) storage.warp[threadIdx.x / kWarpSize] = value;
  sync_block();
  value = storage.warp[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarpSize; ++warp) {
    value = fold(value, storage.warp[warp]);
  }
  return value;
}

/// The first bin at which the running sum reaches a target; not there: kRadixBins, `before` is all.
struct FoundBin {
  int bin;
  Weight before;  // in the bins below
  Weight weight;  // in the bin
};

struct SelectStorage {
  WeightHistogram histogram;
  FoldStorage<Weight> sums;
  FoundBin found;
};

/// weight_of(bin) for kRadixBins bins; all threads of the block call it, and get the same answer.
template <class WeightOf>
__device__ inline FoundBin find_bin(WeightOf&& weight_of, Weight target, SelectStorage& storage) {
  const int num_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int per_thread = kRadixBins / num_threads;
  Weight sum = 0;
  for (int i = 0; i < per_thread; ++i) sum += weight_of(thread * per_thread + i);
  const Weight upto = warp_prefix_sum(sum);
  sync_block();
  if (thread % kWarpSize == kWarpSize - 1) storage.sums.warp[thread / kWarpSize] = upto;
  sync_block();
  Weight before = upto - sum;
  for (int warp = 0; warp < thread / kWarpSize; ++warp) before += storage.sums.warp[warp];
  if (before < target && before + sum >= target) {
    int bin = thread * per_thread;
    for (; before + weight_of(bin) < target; ++bin) before += weight_of(bin);
    storage.found = {bin, before, weight_of(bin)};
  } else if (thread == num_threads - 1 && before + sum < target) {
    storage.found = {kRadixBins, before + sum, 0};
  }
  sync_block();
  return storage.found;
}

struct Selected {
  uint32_t key;
  Weight missing;  // of the target, after all smaller keys
  Weight weight;   // of this key: at least `missing`
};

/// Where the weights, by ascending key, reach `target` >= 1, which all of them together do.
/// each(add) calls add(key, weight) for this thread's elements, the same ones every time.
template <class Each>
__device__ inline Selected radix_select(Each&& each, int key_bits, Weight target,
                                        SelectStorage& storage) {
  const int num_threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  uint32_t prefix = 0;
  Weight weight = 0;
  for (int left = key_bits; left > 0;) {
    const int bits = left < kRadixBits ? left : kRadixBits;
    sync_block();
    storage.histogram.clear(thread, num_threads);
    sync_block();
    each([&](uint32_t key, Weight weight) {
      if (left < key_bits && key >> left != prefix) return;
      storage.histogram.add(static_cast<int>(key >> (left - bits) & ((1u << bits) - 1)), weight);
    });
    sync_block();
    const FoundBin found = find_bin(storage.histogram, target, storage);
    target -= found.before;
    weight = found.weight;
    prefix = prefix << bits | static_cast<uint32_t>(found.bin);
    left -= bits;
  }
  return {prefix, target, weight};
}

}  // namespace lampo::cuda
