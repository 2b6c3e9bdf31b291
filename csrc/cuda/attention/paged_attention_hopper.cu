// SPDX-License-Identifier: Apache-2.0
// paged_attention for prompts on Hopper by TMA and wgmma, sm_90a: the same plan, partial states,
// masks, softmax and merge as the kernel for mma.sync (paged_attention.cu), other products and
// copies. Chosen by LAMPO_CUDA_ATTENTION=wgmma, for calls that are not deterministic.
//
// A block, one per multiprocessor, has a tile of 128 rows, pairs of a token and a query head of a
// group, and reads 128 keys at a time. Of its three warpgroups two have 64 rows each; of the third
// one warp copies K and V into rings of two stages, four for heads of 64. A lane copies a box: a
// line, 64 dims, of the rows of a page, or of 128 of them; a page id outside of the cache stands
// for keys that no row sees, which TMA fills with zeros. V of a tile that ends within a page is
// cleared behind its end before the stage is called full. The registers that the copying warpgroup
// gives up go to the others: 232 of them per thread.
//
//   S = Q K^T    both in shared memory, lines along dims, wgmma m64n128k16, f32 sums
//   O += P V     P in registers, V in lines along dims, transposed by the descriptor
//
// S of a key tile is started before O of the one before, so that the tensor cores have work while
// weights are computed; the other warpgroup fills what is left.
//
// Bytes and FLOPs: as paged_attention.cu. Prefill of 16384, causal, 32/8 heads of 128, is 2.2
// TFLOP: 2.8 ms at 780 TFLOP/s. By benchmarks/gpu_model.py a key tile takes a warp 1024 cycles of
// the tensor core and 505 instructions, of which exp2 occupies its unit for 528 cycles.
// Shared memory: 198 KB for heads of 128, 166 KB for 64. Workspace: that of split rows, which
// has no fewer blocks.
//
// Limits: a cache of q's type, head_dim up to 128, pages of at least 8 tokens, rows and pages a
// multiple of 16 bytes apart. run_hopper() declines everything else, and what the driver's encoder
// of tensor maps refuses. The last bits differ from those of mma.sync: keys are summed 128 at a
// time.
//
// Not run on a GPU yet: compiled for sm_90a without spills, and run on the CPU with twins of
// mbarrier, TMA and wgmma (tests/cuda_on_cpu/). Not tried: turns of the two warpgroups by barriers;
// Q by TMA; rows stored while the next tile begins; clusters that share K and V.
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
void run(const PagedAttentionParams& p, const CUtensorMap& k_map, const CUtensorMap& v_map,
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
          .shared_bytes = kSharedBytes,
          .begins_early = true},
         paged_attention_hopper_kernel<Traits>, make_arguments<Traits>(p, plan), k_map, v_map);
}

}  // namespace

bool run_hopper(const PagedAttentionParams& p, int device, Stream stream) {
  if (device_limits("paged_attention", device).compute_capability != 90) return false;
  static const bool has_image = kernel_image_for(compiled_architectures(), 9, 0) == "sm_90a";
  const bool fits =
      p.cache_dtype == p.dtype && p.head_dim <= 128 && p.page_size >= 8 && p.num_pages < INT_MAX;
  if (!has_image || !fits) return false;
  const auto k_map =
      map_cache(p, p.k_cache, p.stride_k_cache_page, p.stride_k_cache_head, p.stride_k_cache_slot);
  const auto v_map =
      map_cache(p, p.v_cache, p.stride_v_cache_page, p.stride_v_cache_head, p.stride_v_cache_slot);
  if (!k_map || !v_map) return false;
  dispatch_dtype<BF16, F16>(p.dtype, [&]<class T>() {
    dispatch_int<64, 128>(padded_head_dim(p.head_dim), [&]<int kHeadDim>() {
      run<HopperTraits<T, kHeadDim>>(p, *k_map, *v_map, device, stream);
    });
  });
  return true;
}

}  // namespace lampo::cuda
