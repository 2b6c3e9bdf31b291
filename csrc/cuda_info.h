// SPDX-License-Identifier: Apache-2.0
// CUDA in this build and on this machine. Nothing here throws or needs a driver, and all of it
// exists in builds without CUDA too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace lampo {

struct CudaDevice {
  int index = 0;
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int num_sms = 0;
  int64_t memory_total = 0;  // bytes
  int64_t memory_free = -1;  // bytes; -1: not measured, or unknown
  std::string kernel_image;  // "sm_90a", or "compute_80", PTX for the driver; empty: none
  std::string why;           // empty: lampo's kernels can run on it
};

struct CudaInfo {
  bool compiled = false;  // this build has a CUDA backend
  std::string decision;   // why, or why not, as found when it was built
  std::string why;        // empty: usable; else what stands in the way, and what to do
  std::vector<std::string> architectures;  // as in CMake: "80", "90a-real"
  int runtime_version = 0;                 // 13000 is 13.0; 0: none
  int driver_version = 0;                  // newest CUDA the driver knows; 0: no driver
  std::vector<CudaDevice> devices;         // those this process may see
};

/// `measure_free` fills memory_free, which starts a CUDA context on every device.
CudaInfo cuda_info(bool measure_free = false);

}  // namespace lampo
