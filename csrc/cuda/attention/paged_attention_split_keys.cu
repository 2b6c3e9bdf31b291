// SPDX-License-Identifier: Apache-2.0
// Kernels of paged_attention with warps that split keys: see paged_attention.cu.
#include "cuda/attention/run_tiles.cuh"

namespace lampo::cuda {

void run_split_keys(const PagedAttentionParams& p, int device, Stream stream) {
  run_tiles<TileKind::kWarpsSplitKeys>(p, device, stream);
}

}  // namespace lampo::cuda
