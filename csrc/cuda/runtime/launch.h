// SPDX-License-Identifier: Apache-2.0
// Kernel launches: on the caller's device and stream, checked.
#pragma once

#include <cuda_runtime.h>

#include "common/tensor_view.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/error.h"
#include "cuda/runtime/kernel_arch.h"
#include "cuda/runtime/shared_limit.h"

namespace lampo::cuda {

struct Launch {
  const char* op;  // named in errors
  int device;
  Stream stream;
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;  // size of the kernel's SharedStorage
  unsigned cluster = 1;     // blocks in x that share their memory; more than one from sm_90 on
  /// From sm_90 on: before the kernels before it in the stream have ended. The kernel then calls
  /// wait_for_stream() (device/ptx/stream.cuh).
  bool begins_early = false;
};

/// Largest grid in x; kernels stride beyond it. Tests on the CPU lower it, so that kernels stride.
#ifdef LAMPO_MAX_BLOCKS
inline constexpr int64_t kMaxBlocks = LAMPO_MAX_BLOCKS;
#else
inline constexpr int64_t kMaxBlocks = 0x7fffffff;
#endif

template <class... Params, class... Args>
void launch(const Launch& at, void (*kernel)(Params...), const Args&... args) {
  const DeviceGuard guard(at.op, at.device);
  cudaLaunchConfig_t config{};
  config.gridDim = at.grid;
  config.blockDim = at.block;
  config.dynamicSmemBytes = at.shared_bytes;
  config.stream = static_cast<cudaStream_t>(at.stream.handle);
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (at.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {at.cluster, 1, 1};
  }
  // Code for older architectures, compiled for this one when it is loaded, does not wait.
  if (at.begins_early &&
      kernel_arch(reinterpret_cast<const void*>(kernel), at.op, at.device) >= 90) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (at.shared_bytes > kDefaultSharedBytes) {
    raise_shared_limit(reinterpret_cast<const void*>(kernel), at.op, at.device);
  }
  check_cuda(cudaLaunchKernelEx(&config, kernel, args...), at.op, at.device);
}

}  // namespace lampo::cuda
