// SPDX-License-Identifier: Apache-2.0
// out = softmax(softmax_scale * q k^T + mask) v over a paged cache, ragged prefill and decode.
// The twin of cpu/kernels/paged_attention.cpp, for bfloat16 and float16.
//
// TODO header
#include "cuda/attention/run.h"
#include "cuda/backend.h"
#include "cuda/device_limits.h"

#include "common/check.h"

namespace lampo::cuda {

void paged_attention(const PagedAttentionParams& p, int device, Stream stream) {
  if (p.num_tokens == 0) return;
  check_that(p.num_tokens * (p.num_qo_heads / p.num_kv_heads) <= INT32_MAX, "q",
             "expected at most 2^31 - 1 rows of a KV head, got " + std::to_string(p.num_tokens) +
                 " tokens");
  const TileKind kind = choose_tile_kind(p.num_tokens, p.batch_size,
                                         p.num_qo_heads / p.num_kv_heads, p.deterministic);
  const Plan plan = kind == TileKind::kWarpsSplitKeys ? run_split_keys(p, device, stream)
                                                      : run_split_rows(p, device, stream);
  run_merge(p, plan, device, stream);
}

int64_t paged_attention_workspace_size(const AttentionShape& shape, int device) {
  const int head_dim = padded_head_dim(shape.head_dim);
  const TileKind kind = choose_tile_kind(shape.num_tokens, shape.batch_size, shape.group_size,
                                         shape.deterministic);
  const TileLayout layout = tile_layout(kind, head_dim, 2);
  const int num_blocks = layout.max_blocks * device_limits("paged_attention", device).num_sms;
  return workspace_layout(shape.batch_size, num_blocks, layout.shape.rows, head_dim).bytes;
}

}  // namespace lampo::cuda
