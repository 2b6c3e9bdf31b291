// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/device_guard.h"

#include <cuda_runtime_api.h>

#include "cuda/runtime/error.h"

namespace lampo::cuda {
namespace {

/// Driver's cuDevicePrimaryCtxGetState; null if the driver lacks it.
using GetContextState = int (*)(int device, unsigned* flags, int* active);
GetContextState find_context_state() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status{};
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &found,
                                                             7000, cudaEnableDefault, &status);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &found, cudaEnableDefault, &status);
#endif
  if (error != cudaSuccess || status != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<GetContextState>(found);
}

bool has_context(int device) {
  static const GetContextState context_state = find_context_state();
  unsigned flags = 0;
  int active = 0;
  return context_state != nullptr && context_state(device, &flags, &active) == 0 && active != 0;
}

}  // namespace

DeviceGuard::DeviceGuard(const char* op, int device) {
  check_cuda(cudaGetDevice(&previous_), op, device);
  if (previous_ == device) return;
  check_cuda(cudaSetDevice(device), op, device);
  changed_ = true;
}

DeviceGuard::~DeviceGuard() {
  if (changed_ && has_context(previous_)) cudaSetDevice(previous_);
}

}  // namespace lampo::cuda
