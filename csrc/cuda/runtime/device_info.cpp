// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/device_info.h"

#include <cuda_runtime_api.h>

#include "cuda/runtime/error.h"

namespace lampo::cuda {
namespace {

void measure_free_memory(CudaDevice& device) {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  cudaError_t error = cudaSetDevice(device.index);
  if (error == cudaSuccess) error = cudaMemGetInfo(&free_bytes, &total_bytes);
  if (error == cudaSuccess) {
    device.memory_free = static_cast<int64_t>(free_bytes);
  } else if (device.why.empty()) {
    device.why = cause_and_remedy(error, device.index);
  }
}

CudaDevice query_device(int index) {
  CudaDevice device;
  device.index = index;
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, index);
  if (error != cudaSuccess) {
    device.why = cause_and_remedy(error, index);
    return device;
  }
  device.name = properties.name;
  device.major = properties.major;
  device.minor = properties.minor;
  device.num_sms = properties.multiProcessorCount;
  device.memory_total = static_cast<int64_t>(properties.totalGlobalMem);
  device.kernel_image =
      kernel_image_for(compiled_architectures(), properties.major, properties.minor);
  device.why = missing_image(device.name, device.major, device.minor);
  return device;
}

}  // namespace

void query_devices(CudaInfo& info, bool measure_free) {
  cudaDriverGetVersion(&info.driver_version);
  cudaRuntimeGetVersion(&info.runtime_version);
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    info.why = cause_and_remedy(error, 0);
    cudaGetLastError();
    return;
  }
  int current = 0;
  cudaGetDevice(&current);
  bool any_usable = false;
  for (int index = 0; index < count; ++index) {
    CudaDevice device = query_device(index);
    if (measure_free) measure_free_memory(device);
    any_usable = any_usable || device.why.empty();
    info.devices.push_back(std::move(device));
  }
  if (measure_free) cudaSetDevice(current);
  cudaGetLastError();
  if (count == 0) {
    info.why = cause_and_remedy(cudaErrorNoDevice, 0);
  } else if (!any_usable) {
    info.why = info.devices[0].why;
  }
}

}  // namespace lampo::cuda
