// SPDX-License-Identifier: Apache-2.0
// The backends of an op, and the choice between them.
#pragma once

#include "common/check.h"
#include "cpu/backend.h"
#include "cpu/runtime/program.h"
#include "cuda/backend.h"

namespace lampo {

/// Hands a checked call to the backend of its device.
template <class Params>
void on_device(Device device, Stream stream, const Params& params, void (*on_cpu)(const Params&),
               void (*on_cuda)(const Params&, int, Stream)) {
  if (device.type == DeviceType::kCPU) {
    on_cpu(params);
  } else {
    on_cuda(params, device.index, stream);
  }
}

}  // namespace lampo
