// SPDX-License-Identifier: Apache-2.0
// Ops without a CUDA kernel yet.
#include "common/check.h"
#include "cuda/backend.h"
#include "cuda/linear_launch.h"

namespace lampo::cuda {
namespace {

[[noreturn]] void refuse(const char* op) {
  throw BackendError(std::string(op) + ": has no CUDA kernel yet, use CPU tensors");
}

}  // namespace

void linear_packed(const LinearParams&, int, Stream) { refuse("linear_packed"); }
void sample(const SampleParams&, int, Stream) { refuse("sample"); }
void token_logprobs(const TokenLogprobsParams&, int, Stream) { refuse("token_logprobs"); }
int64_t sampling_workspace_size(int64_t) { refuse("sample"); }

}  // namespace lampo::cuda
