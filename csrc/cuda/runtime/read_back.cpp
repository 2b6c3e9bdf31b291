// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "cuda/backend.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/error.h"

namespace lampo::cuda {

bool read_back(const char* op, const void* from, void* to, size_t bytes, int device,
               Stream stream) {
  const DeviceGuard guard(op, device);
  const auto handle = static_cast<cudaStream_t>(stream.handle);
  cudaStreamCaptureStatus status{};
  check_cuda(cudaStreamIsCapturing(handle, &status), op, device);
  if (status != cudaStreamCaptureStatusNone) return false;
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, handle), op, device);
  check_cuda(cudaStreamSynchronize(handle), op, device);
  return true;
}

}  // namespace lampo::cuda
