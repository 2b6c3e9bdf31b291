// SPDX-License-Identifier: Apache-2.0
// For the extension: the CPU's tensors pass for a device's, so that ops give them to the kernels of
// csrc/cuda/, and nothing is the host's.
#pragma once

#define kCpu kHostMemory
#define kCuda kDeviceMemory
#include_next "bindings/dlpack_abi.h"
#undef kCpu
#undef kCuda

namespace lampo::dlpack {

inline constexpr DeviceCode kCpu = kDeviceMemory;
inline constexpr DeviceCode kCuda = kHostMemory;

}  // namespace lampo::dlpack
