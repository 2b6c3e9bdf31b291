// SPDX-License-Identifier: Apache-2.0
// The driver's functions that csrc/cuda/ asks for by name.
#include <cstring>

#include "cuda.h"
#include "cuda_runtime.h"

namespace simt {
namespace {

int get_context_state(int device, unsigned*, int* active) {
  *active = has_context(device);
  return 0;
}

/// Refuses what the driver's manual forbids, for a swizzle of 128 bytes and four dimensions.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                      const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const auto is_bad = [](uint64_t value, uint64_t most) { return value == 0 || value > most; };
  if (rank != 4 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B || box[0] != 64 ||
      reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  CUtensorMap result{};
  result.data = data;
  for (int i = 0; i < 4; ++i) {
    if (is_bad(sizes[i], uint64_t{1} << 32) || is_bad(box[i], 256) || steps[i] != 1) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    result.size[i] = static_cast<int64_t>(sizes[i]);
    result.box[i] = static_cast<int>(box[i]);
    if (i == 0) continue;
    if (strides[i - 1] % 16 != 0 || strides[i - 1] >= uint64_t{1} << 40) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    result.stride[i] = static_cast<int64_t>(strides[i - 1]);
  }
  *map = result;
  return CUDA_SUCCESS;
}

}  // namespace

void* driver_function(const char* name) {
  if (strcmp(name, "cuDevicePrimaryCtxGetState") == 0) {
    return reinterpret_cast<void*>(get_context_state);
  }
  if (strcmp(name, "cuTensorMapEncodeTiled") == 0) return reinterpret_cast<void*>(encode_tiled);
  return nullptr;
}

}  // namespace simt
