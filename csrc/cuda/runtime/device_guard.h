// SPDX-License-Identifier: Apache-2.0
// The current device of a thread.
#pragma once

namespace lampo::cuda {

/// Makes `device` current for its lifetime. The device before it becomes current again if this
/// process has a context there; making it current would create one, of some hundred megabytes, on a
/// GPU that this process may never use.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

}  // namespace lampo::cuda
