// SPDX-License-Identifier: Apache-2.0
// The passes over rows of logits that sample and token_logprobs share. A row is shared by several
// CUDA blocks (sample_plan.h), each with a range of sample blocks of 256 tokens, a warp a block.
// Sums are of integers, so neither the number of parts nor their order changes the result.
#pragma once

#include "cuda/device/logit_row.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/device/radix_select.cuh"
#include "cuda/runtime/launch.h"
#include "cuda/sampling/sample_plan.h"

namespace lampo::cuda {
namespace {

constexpr int kWarps = kSampleThreads / kWarpSize;

/// A row's cuts, from gather_kernel, and what is kept, from draw_kernel.
struct SampleRowState {
  int k_bucket;         // that holds top-k's cut; kBuckets: nothing is cut off
  int p_first, p_last;  // between which top-p's cut is; kBuckets: off
  unsigned list_size;   // tokens of those buckets; more than kListCapacity: no list
  Weight k_missing;     // tokens of k_bucket that top-k keeps
  Weight mass_above_k;  // in the buckets before k_bucket
  Weight mass_above_p;  // in the buckets before p_first
  float kept_value;     // l > value is kept, l == value up to token kept_last,
  float kept_mass;      // and all that only with this mass
  int64_t kept_last;
  double log_mass;  // of what is kept: processed_logprob()
};
static_assert(sizeof(SampleRowState) <= 128);

struct RowScratch {
  SampleRowState* state;
  float *part_max, *raw_part_max;
  Weight* raw_part_mass;
  Weight* bucket_mass;
  unsigned* bucket_count;
  float* list_value;
  int32_t* list_id;
  float* block_max;
  Weight* block_mass;
  float* copy;
};

struct SampleWork {
  char* base;
  SampleLayout layout;
  int64_t num_rows, vocab_size;
  int parts;

  __device__ int64_t num_blocks() const { return sample_blocks(vocab_size); }
  template <class T>
  __device__ T* at(int64_t row, int64_t offset) const {
    return reinterpret_cast<T*>(base + row * layout.bytes + offset);
  }
  __device__ RowScratch scratch(int64_t row) const {
    return {at<SampleRowState>(row, layout.state),
            at<float>(row, layout.part_max),
            at<float>(row, layout.raw_part_max),
            at<Weight>(row, layout.raw_part_mass),
            at<Weight>(row, layout.bucket_mass),
            at<unsigned>(row, layout.bucket_count),
            at<float>(row, layout.list_value),
            at<int32_t>(row, layout.list_id),
            at<float>(row, layout.block_max),
            at<Weight>(row, layout.block_mass),
            at<float>(row, layout.copy)};
  }
  __device__ float max_of(const float* part_max) const {
    float row_max = minus_infinity();
    for (int part = 0; part < parts; ++part) row_max = fmaxf(row_max, part_max[part]);
    return row_max;
  }
};

template <class E>
struct Rows {
  const E* data;  // [num_rows, vocab_size]
  int64_t stride;

  __device__ LogitRow<E> row(int64_t row, int64_t vocab_size, bool infinite = false) const {
    return {data + row * stride, vocab_size, infinite};
  }
};

/// One CUDA block's share of a row.
struct RowPart {
  int64_t row;
  int part;
  int64_t begin, end;  // sample blocks

  /// Calls fn(block) in the warps of the CUDA block, each for blocks of its own.
  template <class Fn>
  __device__ void for_blocks(Fn&& fn) const {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    for (int64_t block = begin + warp; block < end; block += kWarps) fn(block);
  }
};

__device__ inline RowPart part_of(const SampleWork& work, int64_t row, int part) {
  return {row, part, work.num_blocks() * part / work.parts,
          work.num_blocks() * (part + 1) / work.parts};
}

/// Calls fn(part) for the parts of all rows, which the CUDA blocks take in turns, after the kernels
/// before.
template <class Fn>
__device__ inline void for_each_part(const SampleWork& work, Fn&& fn) {
  wait_for_stream();
  for (int64_t i = blockIdx.x; i < work.num_rows * work.parts; i += gridDim.x) {
    const int64_t row = i / work.parts;
    fn(part_of(work, row, static_cast<int>(i - row * work.parts)));
    sync_block();  // shared memory is free again
  }
}

struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

__device__ inline bool lane_leads() { return threadIdx.x % kWarpSize == 0; }

struct MaximaStorage {
  FoldStorage<float> maxima;
};

/// The largest logit of every block of a part, and of the part, to the places in the row's scratch;
/// `first` also empties what the next passes add to.
template <class E>
__device__ inline void find_maxima(const SampleWork& work, const Rows<E>& rows, const RowPart& part,
                                   int64_t part_max, int64_t block_max, bool first) {
  const LogitRow<E> row = rows.row(part.row, work.vocab_size);
  float* block_maxima = work.at<float>(part.row, block_max);
  float largest = minus_infinity();
  part.for_blocks([&](int64_t block) {
    const LaneTokens tokens = row.load_block(block);
    float block_largest = tokens.l[0];
#pragma unroll
    for (int j = 1; j < kTokensPerLane; ++j) block_largest = fmaxf(block_largest, tokens.l[j]);
    for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
      block_largest = fmaxf(block_largest, shuffle_xor(block_largest, mask));
    }
    if (lane_leads()) block_maxima[block] = block_largest;
    largest = fmaxf(largest, block_largest);
  });
  largest = block_fold(largest, Larger{}, shared_storage<MaximaStorage>().maxima);
  if (threadIdx.x == 0) work.at<float>(part.row, part_max)[part.part] = largest;
  if (!first) return;
  const RowScratch scratch = work.scratch(part.row);
  const int step = work.parts * kSampleThreads;
  for (int bin = part.part * kSampleThreads + static_cast<int>(threadIdx.x); bin < kBuckets;
       bin += step) {
    scratch.bucket_mass[bin] = 0;
    scratch.bucket_count[bin] = 0;
  }
  if (part.part == 0 && threadIdx.x == 0) scratch.state->list_size = 0;
}

template <class E>
__global__ void __launch_bounds__(kSampleThreads)
    maxima_kernel(const __grid_constant__ SampleWork work, Rows<E> rows, int64_t part_max,
                  int64_t block_max, bool first) {
  for_each_part(work, [&](const RowPart& part) {
    find_maxima(work, rows, part, part_max, block_max, first);
  });
}

struct MassStorage {
  FoldStorage<Weight> sums;
};

/// Mass of a part's raw logits at temperature 1.
template <class E>
__device__ inline void sum_raw_masses(const SampleWork& work, const Rows<E>& rows,
                                      const RowPart& part) {
  const RowScratch scratch = work.scratch(part.row);
  const float row_max = work.max_of(scratch.raw_part_max);
  const bool infinite = row_max == __builtin_huge_valf();
  const LogitRow<E> row = rows.row(part.row, work.vocab_size, infinite);
  const MassScale mass = {infinite ? 0.0f : row_max, exponent_scale(1.0f)};
  Weight sum = 0;
  part.for_blocks([&](int64_t block) {
    const LaneTokens tokens = row.template load_block<true>(block);
#pragma unroll
    for (int j = 0; j < kTokensPerLane; ++j) sum += round_to_u64(mass(tokens.l[j]));
  });
  sum = block_fold(sum, Sum{}, shared_storage<MassStorage>().sums);
  if (threadIdx.x == 0) scratch.raw_part_mass[part.part] = sum;
}

template <class E>
__global__ void __launch_bounds__(kSampleThreads)
    raw_mass_kernel(const __grid_constant__ SampleWork work, Rows<E> rows) {
  for_each_part(work, [&](const RowPart& part) { sum_raw_masses(work, rows, part); });
}

/// After both passes: of the row as it came.
__device__ inline RawLogprob raw_logprob(const SampleWork& work, const RowScratch& scratch) {
  Weight sum = 0;
  for (int part = 0; part < work.parts; ++part) sum += scratch.raw_part_mass[part];
  return {work.max_of(scratch.raw_part_max), sum};
}

/// copies: rows of the workspace have room for one.
inline SampleWork plan_work(void* workspace, int64_t num_rows, int64_t vocab_size, bool copies,
                            int parts) {
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  return {static_cast<char*>(workspace) + (-address & 127), sample_layout(vocab_size, copies),
          num_rows, vocab_size, parts};
}

/// Of kernels with one CUDA block a part of a row, or a row.
inline Launch launch_of(const char* op, int64_t blocks, size_t shared_bytes, int device,
                        Stream stream) {
  return {
      .op = op,
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(kSampleThreads),
      .shared_bytes = shared_bytes,
      .begins_early = true,
  };
}

}  // namespace
}  // namespace lampo::cuda
