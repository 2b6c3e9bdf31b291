// SPDX-License-Identifier: Apache-2.0
// Limits of a device that determine tiles, splits and clusters.
#pragma once

namespace lampo::cuda {

struct DeviceLimits {
  int compute_capability;  // 10 * major + minor: 80, 90
  int num_sms;
  int shared_bytes_per_block;  // limit of cudaFuncSetAttribute
  int shared_bytes_per_sm;
};

/// Limits of a device; the driver is asked once. Throws BackendError.
const DeviceLimits& device_limits(const char* op, int device);

}  // namespace lampo::cuda
