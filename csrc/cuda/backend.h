// SPDX-License-Identifier: Apache-2.0
// The CUDA backend as csrc/ops/ sees it: the same functions as cpu/backend.h, on a device and a
// stream. Each enqueues its work and returns; what the device cannot do is a BackendError.
#pragma once

#include "params.h"

namespace lampo::cuda {

void rms_norm(const RmsNormParams& p, int device, Stream stream);
void silu_mul(const ActivationParams& p, int device, Stream stream);
void merge_states(const MergeStatesParams& p, int device, Stream stream);

}  // namespace lampo::cuda
