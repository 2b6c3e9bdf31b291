// SPDX-License-Identifier: Apache-2.0
// Ops without a CUDA kernel yet.
#include "common/check.h"
#include "cuda/backend.h"

namespace lampo::cuda {
namespace {

[[noreturn]] void refuse(const char* op) {
  throw BackendError(std::string(op) + ": has no CUDA kernel yet, use CPU tensors");
}

}  // namespace

void paged_attention(const PagedAttentionParams&, int, Stream) { refuse("paged_attention"); }
int64_t paged_attention_workspace_size(int64_t, int64_t, int64_t, int64_t) {
  refuse("paged_attention");
}

}  // namespace lampo::cuda
