// SPDX-License-Identifier: Apache-2.0
// Images, versions and devices for cuda_info(). Nothing here throws or needs a driver.
#pragma once

#include "cuda_info.h"

namespace lampo {

/// The compiled image that runs on a GPU: "sm_90a", or "compute_80" if the driver must compile PTX
/// first, or "" for none. Machine code runs on its own major version from its minor
/// version on ("a": on that version alone), PTX on everything from its version on.
///   kernel_image_for({"80", "90a-real"}, 8, 6) == "sm_80"
///   kernel_image_for({"80", "90a-real"}, 12, 0) == "compute_80"
std::string kernel_image_for(const std::vector<std::string>& architectures, int major, int minor);

/// LAMPO_CUDA_ARCHITECTURES of this build; empty without CUDA.
std::vector<std::string> compiled_architectures();

/// "13.0" of 13000.
std::string cuda_version_string(int version);

namespace cuda {
/// Fills the fields that need the CUDA runtime; only in builds with CUDA.
void query_devices(CudaInfo& info, bool measure_free);
}  // namespace cuda

}  // namespace lampo
