// SPDX-License-Identifier: Apache-2.0
// Limit of a kernel's dynamic shared memory.
#pragma once

#include <cstddef>

namespace lampo::cuda {

/// Dynamic shared memory that every kernel may use.
inline constexpr size_t kDefaultSharedBytes = 48 << 10;

/// Raises a kernel's limit to the device's, once per kernel and device. A lower limit would be one
/// that another thread's larger launch has to raise again.
void raise_shared_limit(const void* kernel, const char* op, int device);

}  // namespace lampo::cuda
