// SPDX-License-Identifier: Apache-2.0
// The launches of a paged_attention call, in this order.
#pragma once

#include <optional>

#include "cuda/attention/traits.cuh"

namespace lampo::cuda {

/// paged_attention_plan.cu
void run_plan(const PagedAttentionParams& p, const Plan& plan, int device, Stream stream);

/// paged_attention_split_keys.cu and paged_attention_split_rows.cu. Plan and partial states are in
/// p.workspace; returns the plan.
Plan run_split_keys(const PagedAttentionParams& p, int device, Stream stream);
Plan run_split_rows(const PagedAttentionParams& p, int device, Stream stream);

/// paged_attention_hopper.cu. None, and nothing is done, if the kernel is not made for the GPU, the
/// types, the pages or the build.
std::optional<Plan> run_hopper(const PagedAttentionParams& p, int device, Stream stream);

/// paged_attention_merge.cu
void run_merge(const PagedAttentionParams& p, const Plan& plan, int device, Stream stream);

}  // namespace lampo::cuda
