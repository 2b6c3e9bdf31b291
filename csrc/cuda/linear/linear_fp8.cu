// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on packed weights with E4M3 codes (common/formats/fp8_g128.h), with gate
// or residual. Codes are multiplied as bfloat16, which holds them, by x as linear.cu prepares it
// beside a bfloat16 weight: unchanged if it is bfloat16, else as the sum of two, whatever
// activation_bits says. The sums of a group of 32 inputs get their block's factor.
//
// A lane has words 2 t and 2 t + 1 of rows 2 g and 2 g + 1 of a strip: the inputs that it has of a
// dense weight, in 8 bytes per row. A code's bits, moved to their place in a bfloat16, are 2^-120
// times its value, subnormals included; a multiplication of two at a time mends that.
//
// Bytes: 8.25 bits per weight; Llama-3.1-8B's gate and up [28672, 4096]: 121 MB, 28 us at 4.3 TB/s.
// Loads in flight: 6 groups per warp, 48 KB per multiprocessor.
//
// Limits: in_features a multiple of 128; more tokens are launches of 16 each, up to 128 of 16 bits;
// more are multiplied in tiles (linear_tiles.cu). Not run on a GPU yet: compiled for sm_80 to
// sm_120 without spills, and run on the CPU (tests/cuda_on_cpu/).
// Not tried: cvt of two E4M3 to float16, from sm_89 on, and x in float16.
#include "cuda/device/ptx/arithmetic.cuh"
#include "cuda/linear/dense_product.cuh"
#include "cuda/linear/linear_launch.h"

namespace lampo::cuda {
namespace {

using Group = StripGroup<formats::FP8_G128>;

/// A lane's part of a group of a strip.
struct Fp8Piece {
  uint32_t word[2][2];  // words 2 t and 2 t + 1, of rows 2 g and 2 g + 1
  uint32_t factor;      // of row 2 g + t % 2
};
constexpr int kPieceRegisters = sizeof(Fp8Piece) / 4;

/// Two E4M3 codes, in the upper bytes of 16 bits, as bfloat16.
__device__ inline uint32_t bf16_codes(uint32_t codes) {
  constexpr uint32_t k2To120 = 0x7b807b80u;
  const uint32_t magnitude = codes >> 4 & 0x07f007f0u;
  return multiply_add_pairs<BF16>(and_or(codes, 0x80008000u, magnitude), k2To120, 0);
}

/// kPlanes: of x.
template <int kPlanes, int kStrips>
struct Fp8Product : DenseProduct<BF16, BF16, kPlanes, kStrips, true> {
  using Piece = Fp8Piece;
  static constexpr int kInFlight = packed_in_flight(Group::kBytes, kPieceRegisters, 1);

  /// A round's first block.
  struct Source {
    const uint8_t* block;
  };

  __device__ Source source(int64_t first_row, int chunk) const {
    const int64_t last = (this->p.out_features + kStripRows - 1) / kStripRows - 1;
    const int64_t strip = min(first_row / kStripRows, last);
    return {in_register(static_cast<const uint8_t*>(this->p.weight) +
                        strip * Group::strip_bytes(this->p.in_features) +
                        int64_t{(chunk - this->at.warp) / Group::kGroups} * Group::kBlockBytes)};
  }

  // A lane's parts of its warp's chunk, in bytes from the round's first one.
  const unsigned block = this->at.warp / Group::kGroups * Group::kBlockBytes;
  const unsigned word_at = block + Group::kFactorBytes +
                           this->at.warp % Group::kGroups * Group::kBytes +
                           (2 * this->at.t * kStripRows + 2 * this->at.g) * 4;
  const unsigned factor_at = block + (2 * this->at.g + this->at.t % 2) * Group::kDBytes;

  /// Bytes from a source's chunk to the one i rounds later. A round has whole blocks.
  __device__ static constexpr int begin_of(int i) {
    static_assert(kLinearWarps % Group::kGroups == 0);
    return i * (kLinearWarps / Group::kGroups) * Group::kBlockBytes;
  }

  __device__ void prefetch(const Source& source, int i) const {
    prefetch_to_l2(source.block + word_at + begin_of(i));
    prefetch_to_l2(source.block + word_at + begin_of(i) + Group::kWordBytes);
    prefetch_to_l2(source.block + factor_at + begin_of(i));
  }

  __device__ Piece load(const Source& source, int i) const {
    Piece piece;
    load_once(piece.word[0], source.block + word_at + begin_of(i));
    load_once(piece.word[1], source.block + word_at + begin_of(i) + Group::kWordBytes);
    load_one<Group::kDBytes>(piece.factor, source.block + factor_at + begin_of(i));
    return piece;
  }

  __device__ void multiply(const Piece (&pieces)[kStrips], unsigned char* x_chunk,
                           FragmentC<float> (&sum)[kStrips][kTokenTiles]) const {
    const int num_tokens = static_cast<int>(this->p.num_tokens);
#pragma unroll
    for (int r = 0; r < kStrips; ++r) {
      FragmentA left[2];
      float factor[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        factor[i] = __shfl_sync(kAllLanes, float_from_bits(pieces[r].factor), i, 4);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t word = pieces[r].word[half][i];
          left[half].reg[i] = bf16_codes(select_bytes(word, 0x1404u));
          left[half].reg[2 + i] = bf16_codes(select_bytes(word, 0x3424u));
        }
      }
#pragma unroll
      for (int tile = 0; tile < kTokenTiles; ++tile) {
        if (tile > 0 && num_tokens <= tile * 8) break;
        const int token = min(tile * 8 + this->at.g, num_tokens - 1);  // later columns are ignored
        FragmentC<float> group = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int plane = 0; plane < kPlanes; ++plane) {
            multiply_add<BF16>(group, left[half],
                               *this->x_part(x_chunk, plane, half, token, this->at.t));
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& total = sum[r][tile].value[i];
          total = fmaf(group.value[i], factor[i / 2], total);
        }
      }
    }
  }
};

template <int kPlanes, int kStrips>
__global__ void __launch_bounds__(kLinearThreads)
    linear_fp8_kernel(const __grid_constant__ LinearParams p,
                      const __grid_constant__ LinearTile tile, bool x_aligned) {
  const LinearMemory memory(tile, p.num_tokens);
  const LinearInput x{p, memory.scale, x_aligned};
  const Fp8Product<kPlanes, kStrips> product{{p, x, memory}};
  multiply_groups<kStrips>(p, tile, memory, product);
}

template <int kPlanes>
void run(const LinearParams& p, int device, Stream stream) {
  launch_linear(p, kPlanes * kLinearChunk * 2, Fp8Product<kPlanes, 1>::kInFlight,
                linear_fp8_kernel<kPlanes, 1>, linear_fp8_kernel<kPlanes, 2>, device, stream);
}

}  // namespace

void linear_fp8(const LinearParams& p, int device, Stream stream) {
  p.dtype == DType::kBF16 ? run<1>(p, device, stream) : run<2>(p, device, stream);
}

}  // namespace lampo::cuda
