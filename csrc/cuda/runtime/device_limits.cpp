// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/device_limits.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "cuda/runtime/error.h"

namespace lampo::cuda {
namespace {

DeviceLimits query(const char* op, int device) {
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, which, device), op, device);
    return value;
  };
  return {
      .compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                            attribute(cudaDevAttrComputeCapabilityMinor),
      .num_sms = attribute(cudaDevAttrMultiProcessorCount),
      .shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
      .shared_bytes_per_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
  };
}

}  // namespace

const DeviceLimits& device_limits(const char* op, int device) {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;  // references to elements stay valid
  const std::lock_guard lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  return known.emplace(device, query(op, device)).first->second;
}

}  // namespace lampo::cuda
