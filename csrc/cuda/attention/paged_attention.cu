// SPDX-License-Identifier: Apache-2.0
// out = softmax(softmax_scale * q k^T + mask) v over a paged cache, ragged prefill and decode.
// The twin of cpu/attention/paged_attention.cpp, for bfloat16 and float16 queries.
//
// q, out [num_tokens, num_qo_heads, head_dim]; k_cache, v_cache [num_pages, num_kv_heads,
// page_size, head_dim] of q's type, int8 or fp8; other float types are rounded to q's type, element
// by element.
//
// Two launches: the plan (paged_attention_plan.cu, plan.h) divides the tiles of all sequences, by
// equal cost, among the blocks that are resident at once; then the tiles (kernel.cuh). A tile that
// blocks share is merged by the last of them to arrive (merge.cuh). The layers of a step share one
// plan: a call with `planned` is one launch. Grids depend on shapes alone and lengths stay on the
// device: a captured call may be replayed with other lengths.
//
// A tile's rows are pairs of a token and a query head of a group, so K and V are read once for the
// group. Scores and P V are mma.sync m16n8k16 with f32 sums, the softmax is online, in base 2. K
// and V are copied by cp.async, separately, into a ring; page ids are read a key tile ahead. Two
// kinds of tiles (layout.h):
//   split keys: 16 rows; a warp has 16 keys of every key tile, no barrier in the loop. For decode:
//               all sequences have the same small number of rows.
//   split rows: 128 rows (64 for head_dim 256), 32 (16) per warp. For all other calls. A decoding
//               sequence among prompts leaves three warps idle, but its cache is read once too.
// On Hopper the second kind has another kernel, which has to be asked for:
// paged_attention_hopper.cu.
// Masks (common/attention.h) are applied only to key tiles with keys that some row does not see.
//
// Per key and KV head, bfloat16: 4 head_dim bytes, 4 group_size head_dim FLOPs a token. Expected on
// an H200 (4.3 TB/s copy, 780 TFLOP/s bf16 dense), 32/8 heads of 128:
//   decode, 32 sequences of 4096       537 MB               125 us    bound by bytes
//   decode, 1 of 1024                  4.2 MB                 1 us    latency
//   prefill, 16384 causal              2.2 TFLOP            2.8 ms    bound by mma.sync, about 2/3
//                                                                     of that rate: 4.2 ms
// Shared memory of a block, and blocks per multiprocessor of an H200, by head_dim:
//                   64            128            256      128, 8 bits
//   split keys   66 KB, 3       68 KB, 3       72 KB, 3       70 KB, 3
//   split rows   35 KB, 2       96 KB, 2       99 KB, 2       67 KB, 2
//
// Registers: split keys 122 to 168, head_dim 256 255; split rows 202 to 255. Instructions of the
// loops: benchmarks/gpu_model.py.
//
// deterministic (plan.h): off by default. Off: cuts of a row's keys depend on the batch, through
// the balance of the plan; equal calls give equal bits. On: split rows serve decode too, and cuts
// are every 2048 keys; the cost is not measured yet.
//
// Lengths, offsets and page ids on the device are clamped into range (tiles.h, kv_copier.cuh):
// wrong ones give undefined results, never an illegal access. V of a key that a row does not see,
// but another row of its tile does, is multiplied by 0: a NaN there spreads.
//
// Limits: head_dim 32 to 256 in eights; others than 64, 128 and 256 are computed as the next of
// these. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and run on the CPU
// (tests/cuda_on_cpu/). Not tried: a tile's first keys during the epilogue of the one before.
#include <cstdlib>
#include <cstring>
#include <string>

#include "common/check.h"
#include "cuda/attention/run.h"
#include "cuda/backend.h"

namespace lampo::cuda {
namespace {

/// Whether the environment asks for the kernel of paged_attention_hopper.cu: not the default until
/// it has run on a GPU.
bool prefers_wgmma() {
  const char* choice = std::getenv("LAMPO_CUDA_ATTENTION");
  return choice != nullptr && std::strcmp(choice, "wgmma") == 0;
}

}  // namespace

void paged_attention(const PagedAttentionParams& p, int device, Stream stream) {
  if (p.num_tokens == 0) return;
  const int64_t group_size = p.num_qo_heads / p.num_kv_heads;
  check_that(p.num_tokens * group_size <= INT32_MAX, "q",
             "expected at most 2^31 - 1 rows of a KV head, got " + std::to_string(p.num_tokens) +
                 " tokens of " + std::to_string(group_size));
  const TileKind kind = choose_tile_kind(p.num_tokens, p.batch_size, group_size, p.deterministic);
  if (kind == TileKind::kWarpsSplitKeys) {
    run_split_keys(p, device, stream);
  } else if (p.deterministic || !prefers_wgmma() || !run_hopper(p, device, stream)) {
    run_split_rows(p, device, stream);
  }
}

int64_t paged_attention_workspace_size(const AttentionShape& shape, int device) {
  const int head_dim = padded_head_dim(shape.head_dim);
  const TileKind kind =
      choose_tile_kind(shape.num_tokens, shape.batch_size, shape.group_size, shape.deterministic);
  const TileLayout layout = tile_layout(kind, head_dim, 2);
  const int num_blocks = layout.max_blocks * device_limits("paged_attention", device).num_sms;
  return workspace_layout(shape.batch_size, num_blocks, layout.shape.rows, head_dim).bytes;
}

}  // namespace lampo::cuda
