// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "ops/backend.h"

namespace lampo {

int64_t captured_nodes(Device device, Stream stream) {
  return device.type == DeviceType::kCPU ? 0 : cuda::captured_nodes(device.index, stream);
}

}  // namespace lampo
