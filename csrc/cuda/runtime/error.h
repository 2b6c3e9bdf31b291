// SPDX-License-Identifier: Apache-2.0
// From a CUDA error code to a sentence with cause and remedy.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace lampo::cuda {

/// What `error` means for this build on this machine and what to do about it.
std::string cause_and_remedy(cudaError_t error, int device);

/// What stops this build's kernels from running on a GPU; empty: nothing.
std::string missing_image(const std::string& name, int major, int minor);

/// Unless `error` is cudaSuccess, throws BackendError("<op> on cuda:<device>: <cause, remedy>").
void check_cuda(cudaError_t error, const char* op, int device);

}  // namespace lampo::cuda
