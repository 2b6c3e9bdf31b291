// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>

#include "calls/call.h"
#include "cuda/attention/run.h"

using lampo::cuda::Plan;

namespace {

lampo::AttentionWorkspace workspace_of(const Call& c) {
  return {.num_qo_heads = c.integer("num_qo_heads"),
          .num_kv_heads = c.integer("num_kv_heads"),
          .head_dim = c.integer("head_dim"),
          .max_seq_len = 0,
          .batch_size = c.integer("batch_size"),
          .num_tokens = c.integer("num_tokens"),
          .deterministic = c.integer("deterministic") != 0};
}

/// The plan alone, for any number of blocks and any tile.
void plan_attention(const Call& c) {
  lampo::PagedAttentionParams p{};
  p.mask = {c.integer("causal") != 0, c.integer("sliding_window")};
  p.batch_size = c["seq_lens"].shape[0];
  p.num_tokens = c.integer("num_tokens");
  p.num_qo_heads = c.integer("num_qo_heads");
  p.num_kv_heads = c.integer("num_kv_heads");
  p.num_pages = 1;
  p.page_size = 256;
  p.max_pages_per_seq = 1 << 22;
  p.seq_lens = c["seq_lens"].ptr<int32_t>();
  p.cu_seqlens_q = c["cu_seqlens_q"].ptr<int32_t>();
  lampo::cuda::TileLayout layout{};
  layout.shape = {.rows = c.integer("rows"), .keys = c.integer("keys")};
  const int num_blocks = static_cast<int>(c["cuts"].shape[0]) - 1;
  Plan plan = make_plan(layout, num_blocks, c.integer("deterministic") != 0);
  plan.cuts = c["cuts"].ptr<lampo::cuda::Cut>();
  plan.tile_cuts = c["tile_cuts"].ptr<lampo::cuda::Range>();
  plan.arrived = c["arrived"].ptr<unsigned>();
  plan.costs = c["costs"].ptr<int64_t>();
  plan.first_split = c["first_split"].ptr<int64_t>();
  lampo::cuda::run_plan(p, plan, 0, {});
}

/// attention/layout.h: the tile that a call gets, its blocks, and their workspace.
void choose_layout(const Call& c) {
  namespace cuda = lampo::cuda;
  const int head_dim = cuda::padded_head_dim(c.integer("head_dim"));
  const cuda::TileKind kind =
      cuda::choose_tile_kind(c.integer("num_tokens"), c.integer("batch_size"),
                             c.integer("group_size"), c.integer("deterministic") != 0);
  const cuda::TileLayout tile = cuda::tile_layout(kind, head_dim, c.integer("cache_bytes"));
  const cuda::DeviceLimits limits{.compute_capability = 90,
                                  .num_sms = c.integer("num_sms"),
                                  .shared_bytes_per_block = 0,
                                  .shared_bytes_per_sm = c.integer("shared_bytes_per_sm")};
  const int num_blocks = choose_num_blocks(tile, c.integer("shared_bytes"), limits);
  const cuda::WorkspaceLayout w =
      cuda::workspace_layout(c.integer("batch_size"), num_blocks, tile.shape.rows, head_dim);
  const int64_t values[] = {head_dim,        tile.shape.rows, tile.shape.keys, tile.warps,
                            tile.row_blocks, tile.warp_keys,  tile.stages,     tile.max_blocks,
                            num_blocks,      w.cuts,          w.tile_cuts,     w.arrived,
                            w.costs,         w.first_split,   w.states,        w.accumulators,
                            w.bytes,         w.partial_rows};
  std::copy(std::begin(values), std::end(values), c["out"].ptr<int64_t>());
}

}  // namespace

const Calls kAttentionCalls = {
    {"merge_states",
     [](const Call& c) {
       lampo::merge_states(c["out_partial"], c["lse_partial"], c["out"], c.optional("lse"));
     }},
    {"paged_attention_workspace_size",
     [](const Call& c) {
       *c["size"].ptr<int64_t>() =
           lampo::paged_attention_workspace_size({lampo::DeviceType::kCUDA, 0}, workspace_of(c));
     }},
    {"paged_attention",
     [](const Call& c) {
       setenv("LAMPO_CUDA_ATTENTION", c.integer("wgmma") != 0 ? "wgmma" : "", 1);
       lampo::paged_attention(c["q"], c["k_cache"], c["v_cache"], c["page_table"], c["seq_lens"],
                              c["cu_seqlens_q"],
                              {.softmax_scale = c.number("softmax_scale"),
                               .causal = c.integer("causal") != 0,
                               .sliding_window = c.integer("sliding_window"),
                               .soft_cap = c.number("soft_cap"),
                               .deterministic = c.integer("deterministic") != 0,
                               .planned = c.integer("planned") != 0},
                              c.optional("sinks"), c.optional("k_scale"), c.optional("v_scale"),
                              c.optional("lse"), c["out"], c["workspace"]);
     }},
    {"paged_attention_plan", plan_attention},
    {"paged_attention_layout", choose_layout},
};
