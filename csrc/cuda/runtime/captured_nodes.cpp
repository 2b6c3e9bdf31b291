// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "cuda/backend.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/error.h"

namespace lampo::cuda {

int64_t captured_nodes(int device, Stream stream) {
  constexpr const char* kOp = "captured_nodes";
  const DeviceGuard guard(kOp, device);
  const auto handle = static_cast<cudaStream_t>(stream.handle);
  cudaStreamCaptureStatus status{};
  cudaGraph_t graph = nullptr;
#if CUDART_VERSION >= 13000
  check_cuda(cudaStreamGetCaptureInfo(handle, &status, nullptr, &graph, nullptr, nullptr, nullptr),
             kOp, device);
#else
  check_cuda(cudaStreamGetCaptureInfo_v2(handle, &status, nullptr, &graph, nullptr, nullptr), kOp,
             device);
#endif
  if (status != cudaStreamCaptureStatusActive) return 0;
  size_t count = 0;
  check_cuda(cudaGraphGetNodes(graph, nullptr, &count), kOp, device);
  return static_cast<int64_t>(count);
}

}  // namespace lampo::cuda
