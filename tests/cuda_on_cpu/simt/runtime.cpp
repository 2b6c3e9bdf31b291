// SPDX-License-Identifier: Apache-2.0
// The functions of the CUDA runtime, and of cuda/runtime/error.h, that launches need.
#include "simt/runtime.h"

#include <map>

#include "common/check.h"
#include "cuda/runtime/device_info.h"
#include "cuda/runtime/error.h"
#include "cuda_runtime.h"

namespace simt {
namespace {

std::map<const void*, int> allowed_shared_bytes;
Calls calls;
thread_local int device_of_thread = 0;

}  // namespace

Calls& host_calls() { return calls; }

int current_device() { return device_of_thread; }
void set_device(int device) {
  device_of_thread = device;
  calls.contexts.insert(device);
}
bool has_context(int device) { return calls.contexts.contains(device); }

cudaError_t allow_shared_bytes(const void* kernel, int bytes) {
  if (bytes < 0 || bytes > cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaErrorInvalidValue;
  allowed_shared_bytes[kernel] = bytes;
  calls.shared_limits.push_back(bytes);
  return cudaSuccess;
}

cudaError_t check_config(const cudaLaunchConfig_t& config, const void* kernel, Grid* grid) {
  const dim3 g = config.gridDim, b = config.blockDim;
  grid->grid = g;
  grid->block = b;
  grid->shared_bytes = config.dynamicSmemBytes;
  calls.launches.emplace_back(device_of_thread, config.stream);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      grid->cluster = attribute.val.clusterDim.x;
    } else if (attribute.id == cudaLaunchAttributeProgrammaticStreamSerialization) {
      grid->begins_early = attribute.val.programmaticStreamSerializationAllowed != 0;
    } else {
      return cudaErrorInvalidValue;
    }
  }
  const bool sizes = g.x > 0 && g.y > 0 && g.z > 0 && b.x > 0 && b.y > 0 && b.z > 0;
  const bool limits = g.x <= 0x7fffffffu && g.y <= 65535 && g.z <= 65535 && b.x <= 1024 &&
                      b.y <= 1024 && b.z <= 64 && uint64_t{b.x} * b.y * b.z <= 1024;
  const auto allowed = allowed_shared_bytes.find(kernel);
  const size_t most = allowed == allowed_shared_bytes.end() ? 48 << 10 : allowed->second;
  const bool shared = config.dynamicSmemBytes <= most;
  const bool cluster = grid->cluster >= 1 && grid->cluster <= 8 && g.x % grid->cluster == 0;
  return sizes && limits && shared && cluster ? cudaSuccess : cudaErrorInvalidConfiguration;
}

}  // namespace simt

namespace lampo::cuda {

void check_cuda(cudaError_t error, const char* op, int) {
  if (error == cudaSuccess) return;
  throw BackendError(std::string(op) + ": the launch was refused, error " + std::to_string(error));
}

}  // namespace lampo::cuda

namespace lampo {

// The build's images: those of a Hopper GPU.
std::vector<std::string> compiled_architectures() { return {"90a-real"}; }
std::string kernel_image_for(const std::vector<std::string>&, int, int) { return "sm_90a"; }

}  // namespace lampo
