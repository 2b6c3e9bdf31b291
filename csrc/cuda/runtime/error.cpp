// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/error.h"

#include "build_info.h"
#include "common/check.h"
#include "cuda/runtime/device_info.h"

namespace lampo::cuda {
namespace {

std::string driver_too_old() {
  int driver = 0;
  int runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) {
    return "no NVIDIA driver is installed (or it cannot be loaded): install one, or use "
           "device='cpu'";
  }
  return "the NVIDIA driver supports CUDA " + cuda_version_string(driver) +
         ", but lampo was built with CUDA " + cuda_version_string(runtime) +
         ": update the driver, or rebuild lampo with an nvcc of CUDA " +
         cuda_version_string(driver) + " or older";
}

std::string no_image(int device) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return "no kernel for this GPU";
  const std::string why = missing_image(properties.name, properties.major, properties.minor);
  // There is an image, so it is PTX that the driver had to compile.
  return why.empty() ? "the driver could not compile lampo's PTX for this GPU: update the driver, "
                       "or rebuild lampo for this GPU (LAMPO_CUDA_ARCHITECTURES)"
                     : why;
}

std::string no_such_device() {
  int count = 0;
  cudaGetDeviceCount(&count);
  return "there is no such device, this process sees " + std::to_string(count) +
         " (CUDA_VISIBLE_DEVICES narrows them)";
}

}  // namespace

std::string missing_image(const std::string& name, int major, int minor) {
  if (!kernel_image_for(compiled_architectures(), major, minor).empty()) return "";
  const std::string gpu =
      name + " (compute capability " + std::to_string(major) + "." + std::to_string(minor) + ")";
  if (major < 8) {
    return gpu + " is older than the GPUs that lampo supports (8.0 and later): use device='cpu'";
  }
  return "no kernel is compiled for " + gpu + ", only for " + LAMPO_CUDA_ARCHITECTURES +
         ": rebuild lampo with LAMPO_CUDA_ARCHITECTURES=" + std::to_string(major) +
         std::to_string(minor);
}

std::string cause_and_remedy(cudaError_t error, int device) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return driver_too_old();
    case cudaErrorNoDevice:
      return "no CUDA device is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use "
             "device='cpu'";
    case cudaErrorInvalidDevice:
      return no_such_device();
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      return no_image(device);
    case cudaErrorMemoryAllocation:
      return "out of GPU memory";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorMisalignedAddress:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
      return std::string(cudaGetErrorName(error)) +
             ": a kernel of this process failed, this one or one launched before it, and its CUDA "
             "context is lost: restart, with CUDA_LAUNCH_BLOCKING=1 to see which";
    default:
      return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
  }
}

void check_cuda(cudaError_t error, const char* op, int device) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error for the next launch
  throw BackendError(std::string(op) + " on cuda:" + std::to_string(device) + ": " +
                     cause_and_remedy(error, device));
}

}  // namespace lampo::cuda
