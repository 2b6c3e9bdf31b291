// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/kernel_arch.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <utility>

#include "cuda/runtime/error.h"

namespace lampo::cuda {

int kernel_arch(const void* kernel, const char* op, int device) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  const std::lock_guard lock(mutex);
  const auto [at, is_new] = known.try_emplace({kernel, device}, 0);
  if (is_new) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaSuccess) known.erase(at);
    check_cuda(error, op, device);
    at->second = attributes.ptxVersion;
  }
  return at->second;
}

}  // namespace lampo::cuda
