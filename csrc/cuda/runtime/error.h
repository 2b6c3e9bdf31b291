// SPDX-License-Identifier: Apache-2.0
// CUDA error codes as sentences with cause and remedy.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace lampo::cuda {

/// Meaning and remedy of `error` for this build on this machine.
std::string cause_and_remedy(cudaError_t error, int device);

/// Reason why this build's kernels cannot run on a GPU; empty: they can.
std::string missing_image(const std::string& name, int major, int minor);

/// Unless `error` is cudaSuccess, throws BackendError("<op> on cuda:<device>: <cause, remedy>").
void check_cuda(cudaError_t error, const char* op, int device);

}  // namespace lampo::cuda
