// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/shared_limit.h"

#include <cuda_runtime_api.h>

#include <mutex>
#include <set>
#include <utility>

#include "cuda/runtime/device_limits.h"
#include "cuda/runtime/error.h"

namespace lampo::cuda {

void raise_shared_limit(const void* kernel, const char* op, int device) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> raised;
  const std::lock_guard lock(mutex);
  if (raised.contains({kernel, device})) return;
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, kernel), op, device);
  const int limit = device_limits(op, device).shared_bytes_per_block -
                    static_cast<int>(attributes.sharedSizeBytes);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit), op,
             device);
  raised.insert({kernel, device});
}

}  // namespace lampo::cuda
