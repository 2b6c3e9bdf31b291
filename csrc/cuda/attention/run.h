// SPDX-License-Identifier: Apache-2.0
// The launches of a paged_attention call, in this order.
#pragma once

#include "cuda/attention/traits.cuh"

namespace lampo::cuda {

/// paged_attention_plan.cu. None if p.planned.
void run_plan(const PagedAttentionParams& p, const Plan& plan, int device, Stream stream);

/// paged_attention_split_keys.cu and paged_attention_split_rows.cu. Plan and partial states are in
/// p.workspace.
void run_split_keys(const PagedAttentionParams& p, int device, Stream stream);
void run_split_rows(const PagedAttentionParams& p, int device, Stream stream);

/// paged_attention_hopper.cu. Returns false, and does nothing, if the kernel is not made for the
/// GPU, the types, the pages or the build.
bool run_hopper(const PagedAttentionParams& p, int device, Stream stream);

}  // namespace lampo::cuda
