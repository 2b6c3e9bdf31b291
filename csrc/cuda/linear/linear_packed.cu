// SPDX-License-Identifier: Apache-2.0
// out = norm(x) w^T + bias on packed weights (common/formats/formats.h), with gate or residual. The
// twin of cpu/linear/linear_packed.cpp: x is quantized in groups of 32 to integers of 16 bits, and
// the weights with one scale in a group of a row contribute
//   dw dx (sum qw qx - offset sum qx) + m dx sum qx
// with exact integer sums, added in f32 in two fused steps. Only the order of groups differs. x has
// 16 bits whatever activation_bits says: memory is the limit, and half the kernels are enough.
//
// Work is divided as in linear.cu: a block quantizes x into its shared memory and streams strips
// past it. mma.sync multiplies a group of a strip by 8 tokens at a time: 32 inputs at once, or 16
// where these have a scale of their own. Rows of the fragment are rows of the strip in the order 0,
// 2, ... 14, 1, 3, ... 15: a lane's 4-byte words of codes are then neighbours, so one load of 8
// bytes per lane reads 256 bytes of nibbles: lower halves are the fragment's first half, upper ones
// its second. Words of one or two bits and scales serve all four lanes of a quad: each loads a
// fourth of them, widens its scale, and shuffles hand them out. Values of a table come from four
// registers by permutations of bytes.
// Loads in flight: 4 (Q6_K) to 12 (Q4_0) groups per warp (packed_in_flight).
//
// Bytes: those of the strips, 10.5 (Q2_K) to 34 (Q8_0) per 32 weights.
// Llama-3.1-8B's gate and up [28672, 4096] at 4.3 TB/s:
//   Q4_0 66 MB  15 us;  Q4_K 68 MB  16 us;  Q6_K 96 MB  22 us;  Q8_0 125 MB  29 us
// Instructions by benchmarks/gpu_model.py (docs/performance.md): up to 8 tokens most formats fit
// beside an H200's memory at 4.3 TB/s; Q2_K and Q3_K, and most for 16 tokens, are bound by them.
//
// Limits: in_features a multiple of the format's block; more tokens are launches of 16 each, which
// read the weight again, up to 128 of 16 bits; more are multiplied in tiles (linear_tiles.cu). Not
// run on a GPU yet: compiled for sm_80 to sm_120 without spills, and run on the CPU
// (tests/cuda_on_cpu/).
// Not tried: conversion of integers to floats by a magic number in the accumulator, which would
// relieve the conversion unit; dp4a for a single token.
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/ptx/global_memory.cuh"
#include "cuda/device/ptx/matrix.cuh"
#include "cuda/device/strip.cuh"
#include "cuda/linear/linear_block.cuh"
#include "cuda/linear/linear_launch.h"

namespace lampo::cuda {
namespace {

/// Integers of x of 16 bits are sums of two planes of int8: 256 times the first, and the second.
constexpr int kPlanes = 2;

/// A lane's part of a group of a strip, of rows 2 g and 2 g + 1.
template <class Format>
struct PackedPiece {
  // Words t (of bytes also 4 + t) of both rows.
  uint32_t wide[StripGroup<Format>::kWideWords / 4 + (StripGroup<Format>::kWideWords == 0)][2];
  // What the four lanes of a quad need from each other is loaded once: lane t has row 2 g + t % 2.
  uint32_t pairs;  // word t / 2
  uint32_t singles;
  uint32_t scale;  // of set t / 2, or the minimum if t / 2 = 1; a zero point, where there are any
  uint32_t factor[2];
};

/// Registers of a lane's part.
template <class Format>
constexpr int piece_registers() {
  using Group = StripGroup<Format>;
  return Group::kWideWords / 2 + Group::kHasPairs + Group::kHasSingles + 1 + Group::kHasFactors +
         (Group::kHasFactors && Format::kHasMinimum && Group::kScales == 2);
}

/// What a lane has widened of a piece's scales.
struct OwnScales {
  float scale;  // or a minimum
  float minimum;
};

/// Scales and minima of a set of rows 2 g and 2 g + 1.
struct SetScales {
  float scale[2];
  float minimum[2];
};

/// What a lane needs of a token's group.
struct alignas(16) XPart {
  FragmentB plane[kPlanes];
};

/// Scale and offsets of a token's group. Offsets are of a set: scale * sum, or -kOffset * sum.
template <class Format>
struct alignas(8) TokenScale {
  float scale;
  std::conditional_t<Format::kHasMinimum, float, int> offset[StripGroup<Format>::kScales];
};

__device__ inline uint32_t pack_int8(const float* from) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word |= (static_cast<uint32_t>(static_cast<int>(from[i])) & 0xffu) << 8 * i;
  }
  return word;
}

/// The value of lane t of this lane's quad of 4 neighbours.
template <class T>
__device__ inline T of_quad(T value, int t) {
  return __shfl_sync(kAllLanes, value, t, 4);
}

/// A stored scale or minimum, in units of its factor.
template <class Format>
__device__ inline float widen_scale(uint32_t bits, bool minimum) {
  using formats::ScaleType;
  switch (Format::kScaleType) {
    case ScaleType::kF16:
      return widen_f16(bits);
    case ScaleType::kBF16:
      return to_float(BF16{static_cast<uint16_t>(bits)});
    case ScaleType::kHalfE4M3:
    case ScaleType::kFactoredE4M3:
      return 0.5f * to_float(F8E4M3{static_cast<uint8_t>(bits)});
    case ScaleType::kI8:
      return static_cast<float>(static_cast<int8_t>(bits));
    case ScaleType::kU8:
      return static_cast<float>(bits);
    case ScaleType::kU4:
      return static_cast<float>(minimum ? bits >> 4 : bits & 15);
    case ScaleType::kF16OfBlock:
    case ScaleType::kF32OfBlock:
      return minimum ? static_cast<float>(static_cast<int8_t>(bits)) : 1.0f;
  }
  return 0.0f;
}

/// A stored factor d or m.
template <class Format>
__device__ inline float widen_factor(uint32_t bits) {
  return StripGroup<Format>::kHasFloatFactors ? float_from_bits(bits) : widen_f16(bits);
}

/// Values of the table for the codes of a word of nibbles: of its lower halves, and its upper ones.
template <class Format>
__device__ inline void look_up(uint32_t codes, uint32_t& lower, uint32_t& upper) {
  const uint32_t low = codes & 0x77777777u;                            // places in half a table
  const uint32_t half = and_or(codes >> 1, 0x44444444u, 0x32103210u);  // byte i of the right half
  uint32_t values[2];  // of the lower two bytes, and the upper two
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    values[i] = select_bytes(
        select_bytes(kTableWord<Format, 0>, kTableWord<Format, 1>, low >> 16 * i),
        select_bytes(kTableWord<Format, 2>, kTableWord<Format, 3>, low >> 16 * i), half >> 16 * i);
  }
  lower = select_bytes(values[0], values[1], 0x6420u);
  upper = select_bytes(values[0], values[1], 0x7531u);
}

template <class Format, int kStrips>
struct PackedProduct {
  using Piece = PackedPiece<Format>;
  using Group = StripGroup<Format>;
  // Formats with two sets of scales have fewer where ptxas would spill: two strips, and codes of 3
  // bits. Turns of half as many rounds divide those that the host plans.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr int kFewer =
      Group::kScales == 2 && (kStrips == 2 || Format::kCodeBits == 3) ? 2 : 1;
#else
  static constexpr int kFewer = 1;
#endif
  static constexpr int kPlanned =
      packed_in_flight(Group::kBytes, piece_registers<Format>(), Group::kScales);
  static constexpr int kInFlight = kPlanned / kFewer / 2 * 2;
  static_assert(kPlanned % kInFlight == 0 || kInFlight == 2);
  static constexpr int kNormedTogether = 2;
  static constexpr int kChunkBytes = packed_chunk_bytes(Group::kScales);
  static constexpr int kScales = Group::kScales;
  static_assert(kScales == 1 || !Group::kHasMinima, "a quad has four scales and minima of a row");
  static constexpr bool kHasFactors = Group::kHasFactors;
  // Which lanes of a quad load minima: all with their sets' scales, or the upper two. A minimum has
  // the factor m, or with a zero point the scale's.
  static constexpr bool kMinimumInUpper = Format::kHasMinimum && kScales == 1;
  static constexpr bool kFactorInUpper = kMinimumInUpper && !Group::kHasZeroPoints;
  static constexpr int kScaleBytes = Group::kHasZeroPoints ? 1 : Group::kScaleBytes;

  const LinearParams& p;
  const LinearInput& x;
  const LinearMemory& memory;
  /// A round's first chunk.
  struct Source {
    const uint8_t* block;
  };

  const LinearLane at = {};

  __device__ int chunk_bytes() const {
    return static_cast<int>(linear_chunk_bytes(p.num_tokens, kChunkBytes));
  }

  /// A chunk of x: [tokens][4] pairs of words t and 4 + t of all planes, then [tokens] scales; if
  /// two are one load, of an even number of tokens.
  __device__ XPart* x_part(unsigned char* chunk, int token, int t) const {
    return reinterpret_cast<XPart*>(chunk) + token * 4 + t;
  }
  __device__ TokenScale<Format>* x_scale(unsigned char* chunk, int token) const {
    return reinterpret_cast<TokenScale<Format>*>(x_part(chunk, static_cast<int>(p.num_tokens), 0)) +
           token;
  }

  __device__ Source source(int64_t first_row, int chunk) const {
    const int64_t last = (p.out_features + kStripRows - 1) / kStripRows - 1;
    const int64_t strip = min(first_row / kStripRows, last);
    return {in_register(static_cast<const uint8_t*>(p.weight) +
                        strip * Group::strip_bytes(p.in_features) +
                        int64_t{(chunk - at.warp) / Group::kGroups} * Group::kBlockBytes)};
  }

  // A lane's parts of its warp's chunk, in bytes from the round's first one.
  const int row = 2 * at.g + at.t % 2, upper = at.t / 2;
  const unsigned block = at.warp / Group::kGroups * Group::kBlockBytes;
  const unsigned group = block + Group::kFactorBytes + at.warp % Group::kGroups * Group::kBytes;
  const unsigned wide_at = group + (at.t * kStripRows + 2 * at.g) * 4;
  const unsigned pairs_at = group + Group::kPairOffset + (upper * kStripRows + row) * 4;
  const unsigned singles_at = group + Group::kSingleOffset + row * 4;
  const unsigned scale_at =
      row * kScaleBytes +
      (Group::kHasZeroPoints ? block + Group::kMOffset
       : kMinimumInUpper && upper
           ? group + Group::kMinimumOffset
           : group + Group::kScaleOffset + (kScales == 2 ? upper * Group::kScaleSetBytes : 0));
  const unsigned factor_at =
      block + (kFactorInUpper ? upper * kStripRows + row : row) * Group::kDBytes;

  /// Bytes from a source's chunk to the one i rounds later. A round has whole blocks.
  __device__ static constexpr int begin_of(int i) {
    static_assert(kLinearWarps % Group::kGroups == 0);
    return i * (kLinearWarps / Group::kGroups) * Group::kBlockBytes;
  }

  __device__ void prefetch(const Source& source, int i) const {
    const int begin = begin_of(i);
#pragma unroll
    for (int j = 0; j < Group::kWideWords / 4; ++j) {
      prefetch_to_l2(source.block + wide_at + begin + j * 4 * Group::kWordBytes);
    }
    if constexpr (Group::kHasPairs) prefetch_to_l2(source.block + pairs_at + begin);
    if constexpr (Group::kHasSingles) prefetch_to_l2(source.block + singles_at + begin);
    prefetch_to_l2(source.block + scale_at + begin);
  }

  __device__ Piece load(const Source& source, int i) const {
    const int begin = begin_of(i);
    Piece piece = {};
#pragma unroll
    for (int j = 0; j < Group::kWideWords / 4; ++j) {
      load_once(piece.wide[j], source.block + wide_at + begin + j * 4 * Group::kWordBytes);
    }
    if constexpr (Group::kHasPairs) load_one<4>(piece.pairs, source.block + pairs_at + begin);
    if constexpr (Group::kHasSingles) load_one<4>(piece.singles, source.block + singles_at + begin);
    load_one<kScaleBytes>(piece.scale, source.block + scale_at + begin);
    if constexpr (kHasFactors) {
      load_one<Group::kDBytes>(piece.factor[0], source.block + factor_at + begin);
      if constexpr (Format::kHasMinimum && kScales == 2) {
        load_one<2>(piece.factor[1], source.block + factor_at + begin + 2 * kStripRows);
      }
    }
    return piece;
  }

  /// Four neighbouring threads quantize a group together, 8 inputs each.
  __device__ void stage(int chunk, int num_chunks) const {
    const int parts = num_chunks * 4, total = static_cast<int>(p.num_tokens) * parts;
    for (int first = 0; first < total; first += kLinearThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const int token = min(i, total - 1) / parts, part = min(i, total - 1) - token * parts;
      const auto values = x.read(token, (int64_t{chunk} * 4 + part) * kPerRead);
      quantize_part(values, part / 4, token, part % 4, i < total);
    }
  }

  /// Quantizes `quarter` of a group. All lanes call it; those that are not `valid` write nothing.
  __device__ void quantize_part(const Vector<float, kPerRead>& values, int chunk, int token,
                                int quarter, bool valid) const {
    uint32_t largest = 0;  // bits of the magnitudes; those of a NaN are the largest
#pragma unroll
    for (int i = 0; i < kPerRead; ++i) {
      largest = max(largest, bits_from_float(values.value[i]) & 0x7fffffffu);
    }
    largest = max(largest, shuffle_xor(largest, 1));
    largest = max(largest, shuffle_xor(largest, 2));
    const float absmax = float_from_bits(largest);
    const float unit = absmax / 256.0f;  // value of q = 127
    const float inverse = unit > 0.0f ? 127.0f / unit : 0.0f;
    constexpr float kLargest = 127.0f * 256.0f;
    float quants[kPlanes][kPerRead];
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kPerRead; ++i) {
      // A NaN may become any integer: the scale passes it on.
      const float scaled = fminf(fmaxf(values.value[i] * inverse, -kLargest), kLargest);
      const float quant = rintf(scaled);
      sum += static_cast<int>(quant);
      quants[0][i] = rintf((quant + 0.25f) * (1.0f / 256.0f));
      quants[1][i] = quant - 256.0f * quants[0][i];
    }
    sum += shuffle_xor(sum, 1);  // of half of the group
    const int other = shuffle_xor(sum, 2);
    if (!valid) return;
    unsigned char* to = memory.x + chunk * chunk_bytes();
#pragma unroll
    for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int word = quarter * 2 + i;
        x_part(to, token, word % 4)->plane[plane].reg[word / 4] = pack_int8(quants[plane] + 4 * i);
      }
    }
    if (quarter > 0) return;
    TokenScale<Format>& of_token = *x_scale(to, token);
    const float scale = unit / 127.0f;
    of_token.scale = scale;
#pragma unroll
    for (int set = 0; set < kScales; ++set) {
      const int of_set = kScales == 1 ? sum + other : set == 0 ? sum : other;
      if constexpr (Format::kHasMinimum) {
        of_token.offset[set] = scale * static_cast<float>(of_set);
      } else {
        of_token.offset[set] = -Format::kOffset * of_set;
      }
    }
    if (kScales == 1 && token % 2 == 0 && token == p.num_tokens - 1) (&of_token)[1] = of_token;
  }

  __device__ FragmentA fragment(const Piece& piece) const {
    FragmentA result;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (HasTable<Format>) {
        look_up<Format>(piece.wide[0][i], result.reg[i], result.reg[2 + i]);
      } else {
        CodeWords words = {};
        if constexpr (Group::kHasSingles) words.singles = of_quad(piece.singles, i);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if constexpr (Group::kWideWords > 0) words.wide = piece.wide[Group::kHasBytes ? h : 0][i];
          if constexpr (Group::kHasPairs) words.pairs = of_quad(piece.pairs, 2 * h + i);
          result.reg[2 * h + i] = four_codes<Format>(words, h, at.t);
        }
      }
    }
    return result;
  }

  /// Each lane widens what it has loaded.
  __device__ OwnScales widen(const Piece& piece) const {
    const bool upper = at.t / 2 != 0;
    OwnScales own = {widen_scale<Format>(piece.scale, kMinimumInUpper && upper), 0.0f};
    if constexpr (Format::kHasMinimum && kScales == 2) {
      own.minimum = -widen_f16(piece.factor[1]) * widen_scale<Format>(piece.scale, true);
    }
    if constexpr (kHasFactors) {
      const float factor = widen_factor<Format>(piece.factor[0]);
      own.scale *= kMinimumInUpper && upper ? -factor : factor;
    }
    return own;
  }

  /// Lanes of a quad hand out what they have widened.
  __device__ static SetScales share(const OwnScales& own, int set) {
    SetScales result = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      result.scale[i] = of_quad(own.scale, 2 * set + i);
      if constexpr (kMinimumInUpper) {
        result.minimum[i] = of_quad(own.scale, 2 + i);
      } else if constexpr (Format::kHasMinimum) {
        result.minimum[i] = of_quad(own.minimum, 2 * set + i);
      }
    }
    return result;
  }

  /// a b + c: of the whole group, or with two sets of one of its halves.
  __device__ static FragmentC<int32_t> product(const FragmentA& a, const FragmentB& b,
                                               const FragmentC<int32_t>& c, int set) {
    if constexpr (kScales == 1) {
      return multiply_int8(a, b, c);
    } else {
      return multiply_int8(a.reg[2 * set], a.reg[2 * set + 1], b.reg[set], c);
    }
  }

  /// Those of two neighbouring tokens, or of a last one and any.
  __device__ Vector<TokenScale<Format>, 2> token_scales(unsigned char* x_chunk, int token) const {
    const int last = static_cast<int>(p.num_tokens) - 1;
    if constexpr (kScales == 1) {  // in one load
      return load_vector<TokenScale<Format>, 2>(x_scale(x_chunk, min(token, last / 2 * 2)));
    } else {
      return {*x_scale(x_chunk, min(token, last)), *x_scale(x_chunk, min(token + 1, last))};
    }
  }

  __device__ void multiply(const Piece (&pieces)[kStrips], unsigned char* x_chunk,
                           FragmentC<float> (&sum)[kStrips][kTokenTiles]) const {
    const int num_tokens = static_cast<int>(p.num_tokens);
    FragmentA left[kStrips];
    OwnScales own[kStrips];
    SetScales scales[kStrips];
#pragma unroll
    for (int r = 0; r < kStrips; ++r) {
      left[r] = fragment(pieces[r]);
      own[r] = widen(pieces[r]);
      if constexpr (kScales == 1) scales[r] = share(own[r], 0);
    }
#pragma unroll
    for (int tile = 0; tile < kTokenTiles; ++tile) {
      if (tile > 0 && num_tokens <= tile * 8) break;
      // Columns past the last token are ignored.
      const int column = min(tile * 8 + at.g, num_tokens - 1);
      const XPart right = *x_part(x_chunk, column, at.t);
      const auto scales_of_x = token_scales(x_chunk, tile * 8 + 2 * at.t);
      const auto& of = scales_of_x.value;
#pragma unroll
      for (int set = 0; set < kScales; ++set) {
#pragma unroll
        for (int r = 0; r < kStrips; ++r) {
          // Two sets of two strips would take too many registers.
          if constexpr (kScales == 2) scales[r] = share(own[r], set);
          // The sum begins with what the first plane gives, and the offset.
          FragmentC<int32_t> dot = product(left[r], right.plane[0], {}, set);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            dot.value[i] *= 256;
            if constexpr (Format::kOffset != 0) dot.value[i] += of[i % 2].offset[set];
          }
          dot = product(left[r], right.plane[1], dot, set);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& total = sum[r][tile].value[i];
            const float scale = scales[r].scale[i / 2] * of[i % 2].scale;
            total = fmaf(static_cast<float>(dot.value[i]), scale, total);
            if constexpr (Format::kHasMinimum) {
              total = fmaf(scales[r].minimum[i / 2], of[i % 2].offset[set], total);
            }
          }
        }
      }
    }
  }
};

template <class Format, int kStrips>
__global__ void __launch_bounds__(kLinearThreads)
    linear_packed_kernel(const __grid_constant__ LinearParams p,
                         const __grid_constant__ LinearTile tile, bool x_aligned) {
  const LinearMemory memory(tile, p.num_tokens);
  const LinearInput x{p, memory.scale, x_aligned};
  const PackedProduct<Format, kStrips> product{.p = p, .x = x, .memory = memory};
  multiply_groups<kStrips>(p, tile, memory, product);
}

}  // namespace

void linear_packed(const LinearParams& p, int device, Stream stream) {
  dispatch_format(p.format, [&]<class Format>() {
    if constexpr (HasFloatCodes<Format>) {
      linear_fp8(p, device, stream);
    } else {
      using Product = PackedProduct<Format, 1>;
      launch_linear(p, Product::kChunkBytes, Product::kInFlight, linear_packed_kernel<Format, 1>,
                    linear_packed_kernel<Format, 2>, device, stream);
    }
  });
}

}  // namespace lampo::cuda
