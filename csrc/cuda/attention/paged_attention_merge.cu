// SPDX-License-Identifier: Apache-2.0
// Folds the partial states of the tiles of a paged_attention call that several blocks share.
//
// Block (i, j) looks at cut i of the plan, and returns unless it is the first within a tile. The
// warps of all blocks j take turns with the rows of that tile; a lane has four dims. Partial states
// are folded one by one, in the order of their keys (softmax_state.cuh): the same bits in every
// run.
// Their loads are independent.
//
// Bytes: the partial states once. Decode of one sequence of 32k tokens, 8 KV heads of 4 query heads
// of 128, cut into 396 parts: 0.8 MB; latency. Not run on a GPU yet: compiled for sm_80 to sm_120
// without spills, and run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/attention/run.h"
#include "cuda/attention/softmax_state.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/row_layout.h"

namespace lampo::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kPer = 4;  // dims of a lane

/// First rows of the partial states of a tile.
struct Parts {
  int64_t first, others, step;
  int count;

  __device__ int64_t operator[](int i) const { return i == 0 ? first : others + i * step; }
};

/// Parts of the tile that cut number `cut` is the first to divide. All lanes of the warp call it.
__device__ inline Parts parts_of(const Plan& plan, const Tile& tile, int cut, int lane) {
  const Cut at = plan.cuts[cut];
  if (plan.deterministic) {
    const Range splits = splits_of(plan.shape, key_tiles_of(plan.shape, tile));
    const int64_t first = rows_of_split(plan, at, tile, splits.begin);
    return {first, first, tile.row_end - tile.row_begin, splits.end - splits.begin};
  }
  // No two cuts within a tile are equal (Plan::min_share), so each begins a part.
  int count = 1;
  for (int begin = cut, found = kWarpSize; found == kWarpSize; begin += kWarpSize) {
    const int mine = begin + lane;
    const bool divides = mine <= plan.num_blocks && plan.cuts[mine].same_tile(at);
    found = count_lanes(divides && plan.cuts[mine].key_tile > 0);
    count += found;
  }
  return {rows_of_part(plan, cut - 1, 0), rows_of_part(plan, cut - 1, 1),
          rows_of_part(plan, 1, 1) - rows_of_part(plan, 0, 1), count};
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    merge_kernel(const __grid_constant__ PagedAttentionParams p, const __grid_constant__ Plan plan,
                 bool vector_out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int first = static_cast<int>(blockIdx.x) + 1;
  const Cut at = plan.cuts[first], before = plan.cuts[first - 1];
  if (at.seq > p.batch_size || at.key_tile == 0) return;
  if (before.same_tile(at) && before.key_tile > 0) return;

  const Sequence sequence = sequence_of(p, at.seq);
  const Tile tile = tile_of(p, plan.shape, sequence, at.row_tile);
  const int group_size = group_size_of(p);
  const int num_rows = tile.row_end - tile.row_begin;
  const Parts parts = parts_of(plan, tile, first, lane);
  for (int i = static_cast<int>(blockIdx.y) * kWarps + warp; i < num_rows;
       i += static_cast<int>(gridDim.y) * kWarps) {
    const int row = tile.row_begin + i;
    const int token = row / group_size;
    const int head = at.kv_head * group_size + row - token * group_size;
    const int64_t in_q = sequence.first_token + token;
    for (int dim = lane * kPer; dim < p.head_dim; dim += kWarpSize * kPer) {
      Vector<float, kPer> acc = {};
      RowState run{minus_infinity(), 0.0f};
#pragma unroll 4
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
                acc, result, vector_out);
      if (dim == 0 && p.lse != nullptr) p.lse[in_q * p.stride_lse_token + head] = result.lse;
    }
  }
}

}  // namespace

void run_merge(const PagedAttentionParams& p, const Plan& plan, int device, Stream stream) {
  if (plan.num_blocks < 2) return;
  const bool vector_out =
      rows_aligned(p.out, p.stride_out_token, 2) && rows_aligned(p.out, p.stride_out_head, 2);
  const Launch at{
      .op = "paged_attention",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(plan.num_blocks) - 1,
                   static_cast<unsigned>(plan.shape.rows / (2 * kWarps))),
      .block = dim3(kThreads),
  };
  dispatch_dtype<BF16, F16>(p.dtype,
                            [&]<class T>() { launch(at, merge_kernel<T>, p, plan, vector_out); });
}

}  // namespace lampo::cuda
