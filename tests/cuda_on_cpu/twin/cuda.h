// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/ uses of the driver's cuda.h: tensor maps (simt/driver.cpp encodes them).
#pragma once

#include <cstdint>

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType {
  CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6,
  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9
};
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

/// The driver's is opaque, and as large.
struct alignas(64) CUtensorMap {
  const void* data;
  int64_t size[4];
  int64_t stride[4];  // in bytes; of dimension 0 unused
  int box[4];
  int64_t unused[4];
};
static_assert(sizeof(CUtensorMap) == 128);
