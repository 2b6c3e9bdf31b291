// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on dense weights (f32, bf16, f16), row-major as stored, with gate or
// residual. For small batches: the weight is read once per 16 tokens. The twin of
// cpu/linear/linear.cpp.
//
// A block keeps x, normed and rounded, in shared memory and multiplies strips of 16 weight rows by
// up to 16 tokens with mma.sync, one or two strips at a time (linear_tile.h). Its 16 warps divide a
// strip along the inputs and add their sums in shared memory, in order. mma.sync serves a single
// token too: it hides behind memory, and a token's bits depend neither on the batch nor on the
// number of multiprocessors. No workspace, no atomics.
//
// mma.sync allows any order of inputs, so a lane's fragments of two products are 16 neighbouring
// bytes of two rows: from global memory to registers, past L1, with 8 loads per lane in flight,
// also from one group to the next. That is 64 KB per multiprocessor (an H200 needs 25 to 40 KB). x
// in shared memory has the same order.
//
// Types: x and the weight are multiplied unchanged if both are bfloat16 or both float16. With a
// bfloat16 weight, another x is rounded to the sum of two bfloat16, or with activation_bits 8 and
// float32 to one, as on the CPU. Otherwise both are split into sums of bfloat16 (three for a float,
// two for a float16); products are added down to 2^-27 of the largest: as exact as float32, for 5
// or 6 times the multiplications. An infinity that is split becomes NaN. Weights with rows not
// aligned to 16 bytes are read element by element.
//
// Bytes: the weight once, x and out once per block, from L2. FLOPs: 2 tokens per weight. On an H200
// (4.3 TB/s copy, about 780 TFLOP/s), bfloat16, Llama-3.1-8B's gate and up [28672, 4096]:
//   1 token    235 MB  55 us;  0.2 GFLOP  0.3 us
//   16 tokens  235 MB  55 us;  3.8 GFLOP  4.8 us
// and o [4096, 4096]: 34 MB, 7.8 us.
//
// More than 16 tokens of the weight's own 16-bit type, and more than 128 of 16 bits beside a packed
// weight, go to linear_tiles.cu; of other types they are launches of 16 each.
//
// Limits: none on shapes. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and
// run on the CPU (tests/cuda_on_cpu/).
// Not tried: x from a cluster's shared memory in place of slabs.
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/linear/dense_product.cuh"
#include "cuda/linear/linear_launch.h"

namespace lampo::cuda {
namespace {

template <class T, class W, int kPlanes, int kStrips, bool kAligned>
__global__ void __launch_bounds__(kLinearThreads)
    linear_kernel(const __grid_constant__ LinearParams p, const __grid_constant__ LinearTile tile,
                  bool x_aligned) {
  const LinearMemory memory(tile, p.num_tokens);
  const LinearInput x{p, memory.scale, x_aligned};
  const DenseProduct<T, W, kPlanes, kStrips, kAligned> product{p, x, memory};
  multiply_groups<kStrips>(p, tile, memory, product);
}

/// kPlanes: planes of x. W is multiplied as stored, or as planes of T.
template <class T, class W, int kPlanes, bool kAligned>
void run(const LinearParams& p, int device, Stream stream) {
  launch_linear(p, kPlanes * kLinearChunk * 2, dense_in_flight(sizeof(W)),
                linear_kernel<T, W, kPlanes, 1, kAligned>,
                linear_kernel<T, W, kPlanes, 2, kAligned>, device, stream);
}

}  // namespace

void linear(const LinearParams& p, int device, Stream stream) {
  if (p.num_tokens == 0 || p.out_features == 0) return;
  if (takes_tiles(p)) return linear_tiles(p, device, stream);
  if (p.packed) return linear_packed(p, device, stream);
  dispatch_dtype<float, BF16, F16>(p.weight_dtype, [&]<class W>() {
    constexpr int64_t kPerVector = kVectorBytes / sizeof(W);
    constexpr int kPlanes = std::is_same_v<W, BF16> ? 2 : 3;
    if (p.in_features % kPerRead != 0 || p.stride_weight_row % kPerVector != 0 ||
        reinterpret_cast<uintptr_t>(p.weight) % kVectorBytes != 0) {
      return run<BF16, W, kPlanes, false>(p, device, stream);
    }
    if constexpr (!std::is_same_v<W, float>) {
      const bool one_plane =
          p.dtype == kDTypeOf<W> ||
          (std::is_same_v<W, BF16> && p.dtype == DType::kF32 && p.activation_bits == 8);
      if (one_plane) return run<W, W, 1, true>(p, device, stream);
    }
    run<BF16, W, kPlanes, true>(p, device, stream);
  });
}

}  // namespace lampo::cuda
