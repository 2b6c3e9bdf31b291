// SPDX-License-Identifier: Apache-2.0
// Launch of a kernel of kernel.cuh from Params: the template, the grid, the plan.
#pragma once

#include <algorithm>
#include <bit>
#include <cfloat>
#include <climits>
#include <cmath>

#include "common/dispatch.h"
#include "cuda/attention/kernel.cuh"
#include "cuda/attention/run.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/row_layout.h"

namespace lampo::cuda {

template <class Traits>
AttentionArguments make_arguments(const PagedAttentionParams& p, const Plan& plan) {
  const double scale = p.softmax_scale, cap = p.soft_cap;
  const double factor = cap > 0 ? 1.0 : std::fabs(scale) * 1.4426950408889634;
  const int kv_bytes = size_of(p.cache_dtype);
  const auto cache_aligned = [&](const void* cache, int64_t page, int64_t head, int64_t slot) {
    return rows_aligned(cache, page, kv_bytes) && rows_aligned(cache, head, kv_bytes) &&
           rows_aligned(cache, slot, kv_bytes);
  };
  const bool as_it_is = p.cache_dtype == p.dtype || (kv_bytes == 1 && p.dtype == DType::kBF16);
  const bool copy_kv =
      as_it_is &&
      cache_aligned(p.k_cache, p.stride_k_cache_page, p.stride_k_cache_head,
                    p.stride_k_cache_slot) &&
      cache_aligned(p.v_cache, p.stride_v_cache_page, p.stride_v_cache_head, p.stride_v_cache_slot);
  return {
      .p = p,
      .plan = plan,
      // Not 0, since a masked score, -inf, times 0 is NaN.
      .score_factor = static_cast<float>(factor > FLT_MIN ? factor : FLT_MIN),
      .cap_inner = cap > 0 ? static_cast<float>(std::fabs(scale) / cap) : 0.0f,
      .cap_outer = static_cast<float>(cap * 1.4426950408889634),
      .q_flip = scale < 0 ? 0x80008000u : 0u,
      .page_shift = std::countr_zero(static_cast<uint64_t>(p.page_size)),
      .last_page = static_cast<int>(std::min<int64_t>(p.num_pages - 1, INT_MAX)),
      .kv_bytes = kv_bytes,
      .copy_kv = copy_kv,
      .adjacent_rows =
          copy_kv && p.head_dim == Traits::kHeadDim && p.stride_k_cache_slot == Traits::kHeadDim &&
          p.stride_v_cache_slot == Traits::kHeadDim && p.page_size >= Traits::kRowsPerCopier,
      .vector_q = rows_aligned(p.q, p.stride_q_token, 2) && rows_aligned(p.q, p.stride_q_head, 2),
      .vector_out =
          rows_aligned(p.out, p.stride_out_token, 2) && rows_aligned(p.out, p.stride_out_head, 2),
  };
}

/// Points a plan at its parts of the workspace.
inline Plan place_plan(Plan plan, const PagedAttentionParams& p, int padded_head_dim) {
  const WorkspaceLayout layout =
      workspace_layout(p.batch_size, plan.num_blocks, plan.shape.rows, padded_head_dim);
  char* const at = static_cast<char*>(p.workspace);
  plan.cuts = reinterpret_cast<Cut*>(at + layout.cuts);
  plan.tile_cuts = reinterpret_cast<Range*>(at + layout.tile_cuts);
  plan.arrived = reinterpret_cast<unsigned*>(at + layout.arrived);
  plan.costs = reinterpret_cast<int64_t*>(at + layout.costs);
  plan.first_split = reinterpret_cast<int64_t*>(at + layout.first_split);
  plan.states = reinterpret_cast<RowState*>(at + layout.states);
  plan.accumulators = reinterpret_cast<float*>(at + layout.accumulators);
  plan.head_dim_stride = padded_head_dim;
  return plan;
}

template <class Traits>
void run_tiles_of(const PagedAttentionParams& p, int device, Stream stream) {
  constexpr const char* kOp = "paged_attention";
  constexpr int64_t kSharedBytes = sizeof(AttentionStorage<Traits>);
  static_assert(kSharedBytes <= 99 << 10, "what a block may have on sm_86, sm_89 and sm_120");
  const int64_t blocks =
      choose_num_blocks(Traits::kLayout, kSharedBytes, device_limits(kOp, device));
  const int num_blocks = static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  const Plan plan =
      place_plan(make_plan(Traits::kLayout, num_blocks, p.deterministic), p, Traits::kHeadDim);
  run_plan(p, plan, device, stream);
  launch({.op = kOp,
          .device = device,
          .stream = stream,
          .grid = dim3(static_cast<unsigned>(num_blocks)),
          .block = dim3(Traits::kThreads),
          .shared_bytes = kSharedBytes,
          .begins_early = true},
         paged_attention_kernel<Traits>, make_arguments<Traits>(p, plan));
}

template <TileKind kKind>
void run_tiles(const PagedAttentionParams& p, int device, Stream stream) {
  dispatch_dtype<BF16, F16>(p.dtype, [&]<class T>() {
    dispatch_int<64, 128, 256>(padded_head_dim(p.head_dim), [&]<int kHeadDim>() {
      const auto run = [&]<class Cache>() {
        run_tiles_of<AttentionTraits<T, kHeadDim, Cache, kKind>>(p, device, stream);
      };
      // No such kernels for float16 queries: their 8-bit caches become float16 in the copy.
      if constexpr (std::is_same_v<T, BF16>) {
        if (p.cache_dtype == DType::kI8) return run.template operator()<int8_t>();
        if (p.cache_dtype == DType::kF8E4M3) return run.template operator()<F8E4M3>();
      }
      run.template operator()<T>();
    });
  });
}

}  // namespace lampo::cuda
