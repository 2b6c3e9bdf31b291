// SPDX-License-Identifier: Apache-2.0
// Tensor maps, by which TMA copies boxes of a tensor (device/ptx/tma.cuh).
#pragma once

#include <cuda.h>

#include <optional>

#include "common/tensor_view.h"

namespace lampo::cuda {

/// A tensor of 16-bit elements, the innermost dimension first, and the boxes copied from it. A box
/// has kBoxColumns elements of the innermost dimension, which are a line of device/ptx/wgmma.cuh.
struct BoxedTensor {
  DType dtype;  // kBF16, kF16
  const void* data;
  int64_t size[4];
  int64_t stride[3];  // of dimensions 1 to 3, in elements
  uint32_t box_rows;  // of dimension 1; of the others a box has one index
};

inline constexpr int kBoxColumns = 64;

/// The map for a device's kernels; none if the driver refuses it: an address, or a stride, that is
/// not a multiple of 16 bytes, a size of 0, a driver without TMA.
std::optional<CUtensorMap> encode_tensor_map(const BoxedTensor& tensor);

}  // namespace lampo::cuda
