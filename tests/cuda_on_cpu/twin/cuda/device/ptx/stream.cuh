// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/stream.cuh.
#pragma once

#include "cuda_runtime.h"

namespace lampo::cuda {

inline void wait_for_stream() { simt::wait_for_stream(); }

}  // namespace lampo::cuda
