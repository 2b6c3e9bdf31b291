// SPDX-License-Identifier: Apache-2.0
// Architecture that a kernel was compiled for.
#pragma once

namespace lampo::cuda {

/// The value of __CUDA_ARCH__ / 10 in the code of a kernel that a device runs: 80, 90. It may be
/// less than the device's own. The current device is `device`; it is asked once per kernel.
int kernel_arch(const void* kernel, const char* op, int device);

}  // namespace lampo::cuda
