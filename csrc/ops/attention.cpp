// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>

#include "ops.h"
#include "ops/backend.h"
#include "ops/host_copy.h"
#include "ops/kv_cache.h"

namespace lampo {
namespace {

void check_lengths_tensor(const char* name, const TensorView& t, int64_t size, Device device) {
  check_shape(name, t, {size});
  check_dtype(name, t, {DType::kI32});
  check_contiguous(name, t);
  check_device(name, t, device);
}

/// Checks the values of the index tensors, on the host.
void check_batch(const PagedAttentionParams& p) {
  const int64_t num_pages = p.num_pages;
  check_that(p.cu_seqlens_q[0] == 0, "cu_seqlens_q",
             "expected 0 first, got " + std::to_string(p.cu_seqlens_q[0]));
  for (int64_t seq = 0; seq < p.batch_size; ++seq) {
    const int64_t begin = p.cu_seqlens_q[seq], end = p.cu_seqlens_q[seq + 1];
    check_that(begin <= end && end <= p.num_tokens, "cu_seqlens_q",
               "sequence " + std::to_string(seq) + ": expected ascending values of at most " +
                   std::to_string(p.num_tokens) + " tokens, got " + std::to_string(begin) +
                   " and " + std::to_string(end));
    const int64_t seq_len = p.seq_lens[seq];
    const int64_t capacity = p.max_pages_per_seq * p.page_size;
    check_that(seq_len >= 0 && seq_len <= capacity, "seq_lens",
               "sequence " + std::to_string(seq) + ": expected a length in [0, " +
                   std::to_string(capacity) + "] (the page table's width), got " +
                   std::to_string(seq_len));
    if (begin == end || seq_len == 0) continue;
    const int64_t first_position = seq_len - (end - begin);
    const int64_t first_key = visible_keys(p.mask, first_position, seq_len).begin;
    const int32_t* pages = p.page_table + seq * p.stride_page_table_seq;
    for (int64_t entry = first_key / p.page_size; entry * p.page_size < seq_len; ++entry) {
      check_that(pages[entry] >= 0 && pages[entry] < num_pages, "page_table",
                 "sequence " + std::to_string(seq) + ", entry " + std::to_string(entry) +
                     ": expected a page in [0, " + std::to_string(num_pages) + "), got " +
                     std::to_string(pages[entry]));
    }
  }
}

}  // namespace

int64_t paged_attention_workspace_size(Device device, const AttentionWorkspace& of) {
  check_range("num_kv_heads", static_cast<double>(of.num_kv_heads), 1, 1 << 16);
  check_range("num_qo_heads", static_cast<double>(of.num_qo_heads), 1, 1 << 16);
  check_that(of.num_qo_heads % of.num_kv_heads == 0, "num_qo_heads",
             "expected a multiple of num_kv_heads " + std::to_string(of.num_kv_heads) + ", got " +
                 std::to_string(of.num_qo_heads));
  check_range("head_dim", static_cast<double>(of.head_dim), 1, 256);
  check_range("max_seq_len", static_cast<double>(of.max_seq_len), 0, INT32_MAX);
  check_range("batch_size", static_cast<double>(of.batch_size), 0, INT32_MAX - 1);
  check_range("num_tokens", static_cast<double>(of.num_tokens), 0, INT32_MAX);
  const int64_t group_size = of.num_qo_heads / of.num_kv_heads;
  if (device.type == DeviceType::kCPU) {
    return cpu::paged_attention_workspace_size(group_size, of.head_dim, of.max_seq_len);
  }
  return cuda::paged_attention_workspace_size({.batch_size = of.batch_size,
                                               .num_tokens = of.num_tokens,
                                               .group_size = group_size,
                                               .head_dim = of.head_dim,
                                               .deterministic = of.deterministic},
                                              device.index);
}

void paged_attention(const TensorView& q, const TensorView& k_cache, const TensorView& v_cache,
                     const TensorView& page_table, const TensorView& seq_lens,
                     const TensorView& cu_seqlens_q, const AttentionOptions& options,
                     OptionalTensor sinks, OptionalTensor k_scale, OptionalTensor v_scale,
                     OptionalTensor lse, const TensorView& out, const TensorView& workspace,
                     Stream stream) {
  check_shape("q", q, {kAny, kAny, kAny});
  if (q.device.type == DeviceType::kCPU) {
    check_dtype("q", q, {DType::kF32, DType::kBF16});
  } else {
    check_dtype("q", q, {DType::kF16, DType::kBF16});
  }
  check_inner_contiguous("q", q);
  const int64_t num_tokens = q.shape[0], num_qo_heads = q.shape[1], head_dim = q.shape[2];
  check_shape("k_cache", k_cache, {kAny, kAny, kAny, head_dim});
  check_kv_cache(k_cache, v_cache, k_scale, v_scale, false, q.device);
  const int64_t num_kv_heads = k_cache.shape[1], page_size = k_cache.shape[2];
  check_that(num_qo_heads >= 1 && num_qo_heads % num_kv_heads == 0, "q",
             "expected a multiple of " + std::to_string(num_kv_heads) +
                 " heads (those of k_cache), got shape " + shape_string(q));
  check_shape("page_table", page_table, {kAny, kAny});
  check_dtype("page_table", page_table, {DType::kI32});
  check_inner_contiguous("page_table", page_table);
  check_device("page_table", page_table, q.device);
  const int64_t batch_size = page_table.shape[0];
  check_lengths_tensor("seq_lens", seq_lens, batch_size, q.device);
  check_lengths_tensor("cu_seqlens_q", cu_seqlens_q, batch_size + 1, q.device);
  check_range("softmax_scale", options.softmax_scale, -1e30, 1e30);
  check_range("soft_cap", options.soft_cap, 0.0, 1e30);
  check_range("sliding_window", static_cast<double>(options.sliding_window), 0, INT32_MAX);
  check_that(options.causal || options.sliding_window == 0, "sliding_window",
             "is defined for causal attention only, got causal=False");
  if (sinks != nullptr) {
    check_shape("sinks", *sinks, {num_qo_heads});
    check_dtype("sinks", *sinks, {DType::kF32});
    check_contiguous("sinks", *sinks);
    check_device("sinks", *sinks, q.device);
  }
  if (lse != nullptr) {
    check_shape("lse", *lse, {num_tokens, num_qo_heads});
    check_dtype("lse", *lse, {DType::kF32});
    check_inner_contiguous("lse", *lse);
    check_writable("lse", *lse);
    check_device("lse", *lse, q.device);
  }
  check_shape("out", out, {num_tokens, num_qo_heads, head_dim});
  check_dtype("out", out, {q.dtype});
  check_inner_contiguous("out", out);
  check_writable("out", out);
  check_device("out", out, q.device);
  check_shape("workspace", workspace, {kAny});
  check_dtype("workspace", workspace, {DType::kU8});
  check_contiguous("workspace", workspace);
  check_device("workspace", workspace, q.device);
  check_that(reinterpret_cast<uintptr_t>(workspace.data) % 64 == 0, "workspace",
             "expected an address that is a multiple of 64");
  const int64_t needed =
      paged_attention_workspace_size(q.device, {.num_qo_heads = num_qo_heads,
                                                .num_kv_heads = num_kv_heads,
                                                .head_dim = head_dim,
                                                .max_seq_len = page_table.shape[1] * page_size,
                                                .batch_size = batch_size,
                                                .num_tokens = num_tokens,
                                                .deterministic = options.deterministic});
  check_that(workspace.shape[0] >= needed, "workspace",
             "expected at least " + std::to_string(needed) + " bytes, got " +
                 std::to_string(workspace.shape[0]));

  const auto stride = [](OptionalTensor t, int dim) { return t != nullptr ? t->stride[dim] : 0; };
  const PagedAttentionParams params{
      .dtype = q.dtype,
      .cache_dtype = k_cache.dtype,
      .mask = {options.causal, options.sliding_window},
      .deterministic = options.deterministic,
      .planned = options.planned,
      .batch_size = batch_size,
      .num_tokens = num_tokens,
      .num_qo_heads = num_qo_heads,
      .num_kv_heads = num_kv_heads,
      .head_dim = head_dim,
      .page_size = page_size,
      .max_pages_per_seq = page_table.shape[1],
      .num_pages = k_cache.shape[0],
      .softmax_scale = static_cast<float>(options.softmax_scale),
      .soft_cap = static_cast<float>(options.soft_cap),
      .q = q.data,
      .k_cache = k_cache.data,
      .v_cache = v_cache.data,
      .k_scale = k_scale != nullptr ? k_scale->ptr<const float>() : nullptr,
      .v_scale = v_scale != nullptr ? v_scale->ptr<const float>() : nullptr,
      .page_table = page_table.ptr<const int32_t>(),
      .seq_lens = seq_lens.ptr<const int32_t>(),
      .cu_seqlens_q = cu_seqlens_q.ptr<const int32_t>(),
      .sinks = sinks != nullptr ? sinks->ptr<const float>() : nullptr,
      .out = out.data,
      .lse = lse != nullptr ? lse->ptr<float>() : nullptr,
      .workspace = workspace.data,
      .workspace_bytes = workspace.shape[0],
      .stride_q_token = q.stride[0],
      .stride_q_head = q.stride[1],
      .stride_out_token = out.stride[0],
      .stride_out_head = out.stride[1],
      .stride_lse_token = stride(lse, 0),
      .stride_page_table_seq = page_table.stride[0],
      .stride_k_cache_page = k_cache.stride[0],
      .stride_k_cache_head = k_cache.stride[1],
      .stride_k_cache_slot = k_cache.stride[2],
      .stride_v_cache_page = v_cache.stride[0],
      .stride_v_cache_head = v_cache.stride[1],
      .stride_v_cache_slot = v_cache.stride[2],
      .stride_k_scale_page = stride(k_scale, 0),
      .stride_k_scale_head = stride(k_scale, 1),
      .stride_k_scale_slot = stride(k_scale, 2),
      .stride_v_scale_page = stride(v_scale, 0),
      .stride_v_scale_head = stride(v_scale, 1),
      .stride_v_scale_slot = stride(v_scale, 2),
  };
  if (q.device.type == DeviceType::kCPU) {
    const int64_t num_pages = params.num_pages;
    // The window is part of the key: layers with another one check other entries.
    cpu::check_values(params.page_table, num_pages + (params.mask.sliding_window << 32),
                      [=] { check_batch(params); });
  } else if (const HostCopy cu("paged_attention", cu_seqlens_q, stream); cu) {
    const HostCopy lens("paged_attention", seq_lens, stream);
    const HostCopy pages("paged_attention", page_table, stream);
    PagedAttentionParams copied = params;
    copied.cu_seqlens_q = cu.view().ptr<const int32_t>();
    copied.seq_lens = lens.view().ptr<const int32_t>();
    copied.page_table = pages.view().ptr<const int32_t>();
    check_batch(copied);
  }
  on_device(q.device, stream, params, cpu::paged_attention, cuda::paged_attention);
}

void merge_states(const TensorView& out_partial, const TensorView& lse_partial,
                  const TensorView& out, OptionalTensor lse, Stream stream) {
  check_shape("out_partial", out_partial, {kAny, kAny, kAny, kAny});
  check_dtype("out_partial", out_partial, {DType::kF32});
  check_inner_contiguous("out_partial", out_partial);
  const int64_t num_splits = out_partial.shape[0], num_tokens = out_partial.shape[1];
  const int64_t num_heads = out_partial.shape[2], head_dim = out_partial.shape[3];
  check_that(head_dim >= 1 && head_dim <= 1024, "out_partial",
             "expected a head_dim from 1 to 1024, got " + std::to_string(head_dim));
  check_shape("lse_partial", lse_partial, {num_splits, num_tokens, num_heads});
  check_dtype("lse_partial", lse_partial, {DType::kF32});
  check_inner_contiguous("lse_partial", lse_partial);
  check_device("lse_partial", lse_partial, out_partial.device);
  check_shape("out", out, {num_tokens, num_heads, head_dim});
  check_dtype("out", out, {DType::kF32, DType::kBF16});
  check_inner_contiguous("out", out);
  check_writable("out", out);
  check_device("out", out, out_partial.device);
  if (lse != nullptr) {
    check_shape("lse", *lse, {num_tokens, num_heads});
    check_dtype("lse", *lse, {DType::kF32});
    check_inner_contiguous("lse", *lse);
    check_writable("lse", *lse);
    check_device("lse", *lse, out_partial.device);
  }
  const MergeStatesParams params{
      .dtype = out.dtype,
      .num_splits = num_splits,
      .num_tokens = num_tokens,
      .num_heads = num_heads,
      .head_dim = head_dim,
      .out_partial = out_partial.ptr<const float>(),
      .lse_partial = lse_partial.ptr<const float>(),
      .out = out.data,
      .lse = lse != nullptr ? lse->ptr<float>() : nullptr,
      .stride_out_partial_split = out_partial.stride[0],
      .stride_out_partial_token = out_partial.stride[1],
      .stride_out_partial_head = out_partial.stride[2],
      .stride_lse_partial_split = lse_partial.stride[0],
      .stride_lse_partial_token = lse_partial.stride[1],
      .stride_out_token = out.stride[0],
      .stride_out_head = out.stride[1],
      .stride_lse_token = lse != nullptr ? lse->stride[0] : 0,
  };
  on_device(out.device, stream, params, cpu::merge_states, cuda::merge_states);
}

}  // namespace lampo
