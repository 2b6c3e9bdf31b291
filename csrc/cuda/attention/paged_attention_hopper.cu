// SPDX-License-Identifier: Apache-2.0
// Kernels of paged_attention for prompts on Hopper: wgmma and TMA.
#include "cuda/attention/hopper_kernel.cuh"
#include "cuda/attention/run_tiles.cuh"
#include "cuda/runtime/device_info.h"
#include "cuda/runtime/tensor_map.h"

namespace lampo::cuda {
namespace {

/// TMA of K or V: [head_dim, page_size, num_kv_heads, num_pages].
std::optional<CUtensorMap> map_cache(const PagedAttentionParams& p, const void* cache,
                                     int64_t stride_page, int64_t stride_head,
                                     int64_t stride_slot) {
  return encode_tensor_map({
      .dtype = p.cache_dtype,
      .data = cache,
      .size = {p.head_dim, p.page_size, p.num_kv_heads, p.num_pages},
      .stride = {stride_slot, stride_head, stride_page},
      .box_rows = static_cast<uint32_t>(std::min<int64_t>(p.page_size, 128)),
  });
}

template <class Traits>
Plan run(const PagedAttentionParams& p, const CUtensorMap& k_map, const CUtensorMap& v_map,
         int device, Stream stream) {
  constexpr const char* kOp = "paged_attention";
  constexpr int64_t kSharedBytes = sizeof(HopperStorage<Traits>);
  static_assert(kSharedBytes <= 227 << 10);
  const int64_t blocks =
      choose_num_blocks(Traits::kLayout, kSharedBytes, device_limits(kOp, device));
  const int num_blocks = static_cast<int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
  const Plan plan = place_plan(make_plan(Traits::kLayout, num_blocks, false), p, Traits::kHeadDim);
  run_plan(p, plan, device, stream);
  launch({.op = kOp,
          .device = device,
          .stream = stream,
          .grid = dim3(static_cast<unsigned>(num_blocks)),
          .block = dim3(Traits::kBlockThreads),
          .shared_bytes = kSharedBytes},
         paged_attention_hopper_kernel<Traits>, make_arguments<Traits>(p, plan), k_map, v_map);
  return plan;
}

}  // namespace

std::optional<Plan> run_hopper(const PagedAttentionParams& p, int device, Stream stream) {
  if (device_limits("paged_attention", device).compute_capability != 90) return std::nullopt;
  static const bool has_image = kernel_image_for(compiled_architectures(), 9, 0) == "sm_90a";
  const bool fits =
      p.cache_dtype == p.dtype && p.head_dim <= 128 && p.page_size >= 8 && p.num_pages < INT_MAX;
  if (!has_image || !fits) return std::nullopt;
  const auto k_map =
      map_cache(p, p.k_cache, p.stride_k_cache_page, p.stride_k_cache_head, p.stride_k_cache_slot);
  const auto v_map =
      map_cache(p, p.v_cache, p.stride_v_cache_page, p.stride_v_cache_head, p.stride_v_cache_slot);
  if (!k_map || !v_map) return std::nullopt;
  Plan plan;
  dispatch_dtype<BF16, F16>(p.dtype, [&]<class T>() {
    dispatch_int<64, 128>(padded_head_dim(p.head_dim), [&]<int kHeadDim>() {
      plan = run<HopperTraits<T, kHeadDim>>(p, *k_map, *v_map, device, stream);
    });
  });
  return plan;
}

}  // namespace lampo::cuda
