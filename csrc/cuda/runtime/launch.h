// SPDX-License-Identifier: Apache-2.0
// Kernel launches: on the caller's device and stream, checked.
#pragma once

#include <cuda_runtime.h>

#include "common/tensor_view.h"
#include "cuda/runtime/error.h"

namespace lampo::cuda {

/// Makes `device` current for its lifetime.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device) {
    check_cuda(cudaGetDevice(&previous_), op, device);
    if (previous_ == device) return;
    check_cuda(cudaSetDevice(device), op, device);
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

struct Launch {
  const char* op;  // named in errors
  int device;
  Stream stream;
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // size of the kernel's SharedStorage
  unsigned cluster = 1;     // blocks in x that share their memory; more than one from sm_90 on
};

/// Largest grid in x; kernels stride beyond it. Tests on the CPU lower it, so that kernels stride.
#ifdef LAMPO_MAX_BLOCKS
inline constexpr int64_t kMaxBlocks = LAMPO_MAX_BLOCKS;
#else
inline constexpr int64_t kMaxBlocks = 0x7fffffff;
#endif

/// Dynamic shared memory that needs no cudaFuncSetAttribute.
inline constexpr size_t kDefaultSharedBytes = 48 << 10;

template <class... Params, class... Args>
void launch(const Launch& at, void (*kernel)(Params...), const Args&... args) {
  const DeviceGuard guard(at.op, at.device);
  cudaLaunchConfig_t config{};
  config.gridDim = at.grid;
  config.blockDim = at.block;
  config.dynamicSmemBytes = at.shared_bytes;
  config.stream = static_cast<cudaStream_t>(at.stream.handle);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {at.cluster, 1, 1};
  config.attrs = &cluster;
  config.numAttrs = at.cluster > 1;
  if (at.shared_bytes > kDefaultSharedBytes) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(at.shared_bytes)),
               at.op, at.device);
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, args...), at.op, at.device);
}

}  // namespace lampo::cuda
