// SPDX-License-Identifier: Apache-2.0
// Folds the partial states of a tile of paged_attention that several blocks share, in the last of
// them to arrive.
//
// The block's warps take turns with the rows of the tile; a lane has four dims. Partial states are
// folded one by one, in the order of their keys (softmax_state.cuh), whichever block arrives last:
// the same bits in every run. Their loads are independent.
//
// Bytes: the partial states once. Decode of one sequence of 32k tokens, 8 KV heads of 4 query heads
// of 128, cut into 396 parts: 0.8 MB; latency.
#pragma once

#include "cuda/attention/softmax_state.cuh"
#include "cuda/attention/traits.cuh"
#include "cuda/device/last_block.cuh"

namespace lampo::cuda {

/// Whether this block, with its part of a tile written, is the last of those that share the tile.
/// One thread calls it, behind a barrier of the block.
__device__ inline bool completes_tile(const Plan& plan, const Work& work, int block) {
  const bool first_part = work.at.key_tile == 0;
  if (first_part && work.part.end == work.all.end) return false;
  const int counter = tile_cuts_of(plan, block, first_part).begin;
  return arrives_last(plan.arrived + counter,
                      static_cast<unsigned>(work.part.end - work.part.begin),
                      static_cast<unsigned>(work.all.end - work.all.begin));
}

/// First rows of the partial states of a tile.
struct Parts {
  int64_t first, others, step;
  int count;

  __device__ int64_t operator[](int i) const { return i == 0 ? first : others + i * step; }
};

/// Parts of a tile of which `block` has one.
__device__ inline Parts parts_of(const Plan& plan, const Work& work, int block) {
  if (plan.deterministic) {
    const Range splits = splits_of(plan.shape, work.all);
    const int64_t first = rows_of_split(plan, work.at, work.tile, splits.begin);
    return {first, first, work.tile.row_end - work.tile.row_begin, splits.end - splits.begin};
  }
  // No two cuts within a tile are equal (Plan::min_share), so each begins a part.
  const Range cuts = tile_cuts_of(plan, block, work.at.key_tile == 0);
  return {rows_of_part(plan, cuts.begin - 1, 0), rows_of_part(plan, cuts.begin - 1, 1),
          rows_of_part(plan, 1, 1) - rows_of_part(plan, 0, 1), cuts.end - cuts.begin + 1};
}

/// Writes the tile's rows to out. All threads of the block call it.
template <class T, int kWarps>
__device__ inline void merge_parts(const AttentionArguments& a, const Work& work, int block) {
  constexpr int kPer = 4;  // dims of a lane
  const PagedAttentionParams& p = a.p;
  const Plan& plan = a.plan;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int group_size = group_size_of(p);
  const int num_rows = work.tile.row_end - work.tile.row_begin;
  const Parts parts = parts_of(plan, work, block);
  for (int i = warp; i < num_rows; i += kWarps) {
    const int row = work.tile.row_begin + i;
    const int token = row / group_size;
    const int head = work.at.kv_head * group_size + row - token * group_size;
    const int64_t in_q = work.sequence.first_token + token;
    for (int dim = lane * kPer; dim < p.head_dim; dim += kWarpSize * kPer) {
      Vector<float, kPer> acc = {};
      RowState run{minus_infinity(), 0.0f};
#pragma unroll 8
      for (int part = 0; part < parts.count; ++part) {
        const int64_t from = parts[part] + i;
        const RowState state = plan.states[from];
        const auto values =
            load_vector<float, kPer>(plan.accumulators + from * plan.head_dim_stride + dim);
        const FoldWeights weights = fold(run, state);
#pragma unroll
        for (int k = 0; k < kPer; ++k) {
          acc.value[k] = fold_value(acc.value[k], values.value[k], weights);
        }
      }
      const RowResult result = finish(run, p.sinks != nullptr ? p.sinks + head : nullptr);
      store_out(static_cast<T*>(p.out) + in_q * p.stride_out_token + head * p.stride_out_head + dim,
                acc, result, a.vector_out);
      if (dim == 0 && p.lse != nullptr) p.lse[in_q * p.stride_lse_token + head] = result.lse;
    }
  }
}

}  // namespace lampo::cuda
