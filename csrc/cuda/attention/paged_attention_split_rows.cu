// SPDX-License-Identifier: Apache-2.0
// Kernels of paged_attention with warps that split rows: see paged_attention.cu.
#include "cuda/attention/run_tiles.cuh"

namespace lampo::cuda {

void run_split_rows(const PagedAttentionParams& p, int device, Stream stream) {
  run_tiles<TileKind::kWarpsSplitRows>(p, device, stream);
}

}  // namespace lampo::cuda
