// SPDX-License-Identifier: Apache-2.0
// Packed weights: codes of 2 to 8 bits with a scale, and perhaps a minimum, for each 16 or 32 of
// them along a row, stored in the order in which the kernels read them.
//
// A format is a struct in a file of its own, and an entry of WeightFormats below; nothing else
// names a format. It has
//   kName                 the format in Python and in error messages
//   kBlockSize, kBlockBytes   weights and bytes of a block of one row in the file
//   kScaleSize            weights with one scale: 16 or 32
//   kCodeBits             bits of a code: 2 to 6 (unsigned) or 8 (int8)
//   kFloatCodes           optional, with 8 bits: codes are E4M3 numbers
//   kTable                optional, with 4 bits: the value of each code
//   kOffset               w = scale (code - kOffset) + minimum; 0 with a table, for 8 bits and
//                         beside a minimum
//   kScaleType            of scales and minima: ScaleType
//   kHasMinimum           otherwise the minimum is 0 and not stored
//   kCodesAt              optional: where a block of the file has its codes as a strip has a row's
//   read(from, block)     takes a block of the file apart
//   write(block, to)      its inverse, of formats that quantize_weight() makes
//
// A strip is kStripRows = 16 rows. For each block of inputs in turn it holds, with scales that have
// factors, [16 rows] f16 or f32 of d (and f16 of m, or int8 of z), and then for each group of 32
// inputs
//   codes   planes of [words][16 rows][4 bytes]: the 4-byte words of 16 rows, side by side
//             4 words of the lower four bits (4, 5, 6 bits): byte i of a row holds code i in its
//               lower, code 16 + i in its upper half
//             2 words of two bits (2, 3 bits: the lower ones; 6 bits: the upper ones): byte
//               4 h + j of a row holds those of the codes 16 h + 4 k + j, k = 0 .. 3, from its
//               lowest bits up
//             1 word of the highest bit (3, 5 bits): byte j of a row holds those of the codes
//               4 k + j, k = 0 .. 7, from its lowest bit up
//             8 words of 8 bits: byte i of a row is code i
//   scales  [32 / kScaleSize][16 rows], unless they are the block's
//   minima  [32 / kScaleSize][16 rows], with kHasMinimum only, and not with kU4
// so one 64-byte load gives each of 16 rows its next 4 bytes, and one load 16 scales, and a thread
// reads its share of a matrix from one end to the other. With the scales at the end of each strip,
// hardware prefetchers lost track: 15 GB/s a thread against 25. Missing rows of the last strip are
// zero.
#pragma once

#include "common/formats/fp8_g128.h"
#include "common/formats/int_block.h"
#include "common/formats/iq4_nl.h"
#include "common/formats/iq4_xs.h"
#include "common/formats/mxfp4.h"
#include "common/formats/nvfp4.h"
#include "common/formats/nvfp4_g128.h"
#include "common/formats/q2_k.h"
#include "common/formats/q3_k.h"
#include "common/formats/q4_0.h"
#include "common/formats/q4_1.h"
#include "common/formats/q4_k.h"
#include "common/formats/q5_0.h"
#include "common/formats/q5_1.h"
#include "common/formats/q5_k.h"
#include "common/formats/q6_k.h"
#include "common/formats/q8_0.h"

namespace lampo {

/// A format at run time: its place in WeightFormats.
enum class WeightFormat : uint8_t {};

template <class... Formats>
struct FormatList {};

using WeightFormats =
    FormatList<formats::Q4_0, formats::Q4_1, formats::Q8_0, formats::Q5_0, formats::Q5_1,
               formats::Q2_K, formats::Q3_K, formats::Q4_K, formats::Q5_K, formats::Q6_K,
               formats::IQ4_NL, formats::IQ4_XS, formats::MXFP4, formats::NVFP4, formats::Int4G32,
               formats::Int4G64, formats::Int4G128, formats::Int8G128, formats::NVFP4_G128,
               formats::FP8_G128>;

inline constexpr int kStripRows = 16;
inline constexpr int kGroupSize = 32;

/// Calls fn.template operator()<Format>(value) for all formats, in order, until fn returns true;
/// false if it never does.
template <class... Formats, class Fn>
static inline bool find_format(FormatList<Formats...>, Fn&& fn) {
  int place = 0;
  return (fn.template operator()<Formats>(static_cast<WeightFormat>(place++)) || ...);
}

/// Calls fn.template operator()<Format>() for the struct of `format`.
template <class Fn>
static inline void dispatch_format(WeightFormat format, Fn&& fn) {
  find_format(WeightFormats{}, [&]<class Format>(WeightFormat value) {
    if (value == format) fn.template operator()<Format>();
    return value == format;
  });
}

static inline const char* name_of(WeightFormat format) {
  const char* name = "";
  dispatch_format(format, [&]<class Format>() { name = Format::kName; });
  return name;
}

template <class Format>
concept HasCodesOfStrips = requires { Format::kCodesAt; };

template <class Format>
concept CanWrite = requires(const formats::Block& block, uint8_t* to) { Format::write(block, to); };

template <class Format>
concept HasTable = requires { Format::kTable; };

template <class Format>
concept HasFloatCodes = requires { Format::kFloatCodes; };

/// A group of a strip. Offsets and sizes in bytes.
template <class Format>
struct StripGroup {
  using ScaleType = formats::ScaleType;
  static_assert(Format::kBlockSize % kGroupSize == 0 && kGroupSize % Format::kScaleSize == 0);
  static_assert(Format::kOffset == 0 || (Format::kCodeBits < 8 && !Format::kHasMinimum));
  static_assert(!HasTable<Format> || (Format::kCodeBits == 4 && Format::kOffset == 0));

  // Planes of codes.
  static constexpr bool kHasBytes = Format::kCodeBits == 8;
  static constexpr bool kHasNibbles = Format::kCodeBits >= 4 && !kHasBytes;
  static constexpr bool kHasPairs = Format::kCodeBits == 6 || Format::kCodeBits < 4;
  static constexpr bool kHasSingles = Format::kCodeBits == 3 || Format::kCodeBits == 5;
  static constexpr int kWordBytes = 4 * kStripRows;
  static constexpr int kPairOffset = kHasNibbles ? 4 * kWordBytes : 0;
  static constexpr int kSingleOffset = kPairOffset + (kHasPairs ? 2 * kWordBytes : 0);
  static constexpr int kPairShift = kHasNibbles ? 4 : 0;  // in a code
  static constexpr int kSingleShift = Format::kCodeBits - 1;

  // Factors.
  static constexpr bool kHasFactors = Format::kScaleType >= ScaleType::kI8;
  static constexpr bool kHasScalesOfBlock = Format::kScaleType >= ScaleType::kF16OfBlock;
  static constexpr bool kHasZeroPoints = kHasScalesOfBlock && Format::kHasMinimum;
  static constexpr bool kHasFloatFactors = Format::kScaleType == ScaleType::kFactoredE4M3 ||
                                           Format::kScaleType == ScaleType::kF32OfBlock;
  static constexpr int kDBytes = !kHasFactors ? 0 : kHasFloatFactors ? 4 : 2;  // of d of a row
  static constexpr int kMBytes =                                               // of m or z
      !kHasFactors || !Format::kHasMinimum ? 0
      : kHasZeroPoints                     ? 1
                                           : 2;
  static constexpr int kMOffset = kDBytes * kStripRows;

  // Scales.
  static constexpr bool kHasMinima =  // sets of their own
      Format::kHasMinimum && Format::kScaleType != ScaleType::kU4 && !kHasZeroPoints;
  static constexpr int kScales = kGroupSize / Format::kScaleSize;
  static constexpr int kScaleBytes =
      kHasScalesOfBlock ? 0 : (Format::kScaleType <= ScaleType::kBF16 ? 2 : 1);
  static constexpr int kScaleOffset =
      kHasBytes ? 8 * kWordBytes : kSingleOffset + (kHasSingles ? kWordBytes : 0);
  static constexpr int kScaleSetBytes = kScaleBytes * kStripRows;  // one of all rows
  static constexpr int kMinimumOffset =
      kScaleOffset + (kHasMinima || !Format::kHasMinimum ? kScales * kScaleSetBytes : 0);
  static constexpr int kBytes = kScaleOffset + (kHasMinima ? 2 : 1) * kScales * kScaleSetBytes;

  // Blocks, with their factors in front.
  static constexpr int kGroups = Format::kBlockSize / kGroupSize;
  static constexpr int kFactorBytes = (kDBytes + kMBytes) * kStripRows;
  static constexpr int kBlockBytes = kFactorBytes + kGroups * kBytes;

  static constexpr int kWideWords = kHasBytes ? 8 : kHasNibbles ? 4 : 0;  // of a row

  /// Bytes of a strip.
  LAMPO_HOST_DEVICE static constexpr int64_t strip_bytes(int64_t in_features) {
    return in_features / Format::kBlockSize * kBlockBytes;
  }

  /// Code i of row `lane` of the group at `group`.
  LAMPO_HOST_DEVICE static int code(const uint8_t* group, int64_t lane, int i) {
    const auto byte = [&](int offset, int at) {
      return static_cast<int>(group[offset + (at / 4 * kStripRows + lane) * 4 + at % 4]);
    };
    if constexpr (kHasBytes) {
      return static_cast<int8_t>(byte(0, i));
    } else {
      int found = 0;
      if constexpr (kHasNibbles) found = byte(0, i % 16) >> i / 16 * 4 & 15;
      if constexpr (kHasPairs) {
        found |= (byte(kPairOffset, i / 16 * 4 + i % 4) >> i / 4 % 4 * 2 & 3) << kPairShift;
      }
      if constexpr (kHasSingles) {
        found |= (byte(kSingleOffset, i % 4) >> i / 4 & 1) << kSingleShift;
      }
      return found;
    }
  }
};

static constexpr uint32_t pack_table(const int8_t (&table)[16], int first) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(static_cast<uint8_t>(table[first + i])) << 8 * i;
  }
  return word;
}

/// Values 4 i ... 4 i + 3 of a format's table, the first in the lowest byte. Device code can use
/// constants, but not a host's array.
template <class Format, int i>
static constexpr uint32_t kTableWord = pack_table(Format::kTable, 4 * i);

/// The value of a code, in units of its scale: an integer, or with kFloatCodes a float.
template <class Format>
LAMPO_HOST_DEVICE static inline auto value_of(int code) {
  if constexpr (HasFloatCodes<Format>) {
    return to_float(F8E4M3{static_cast<uint8_t>(code)});
  } else if constexpr (HasTable<Format>) {
    constexpr uint64_t kLow = kTableWord<Format, 0> | uint64_t{kTableWord<Format, 1>} << 32;
    constexpr uint64_t kHigh = kTableWord<Format, 2> | uint64_t{kTableWord<Format, 3>} << 32;
    return int{static_cast<int8_t>((code < 8 ? kLow : kHigh) >> code % 8 * 8 & 0xff)};
  } else {
    return code - Format::kOffset;
  }
}

/// One weight. The addition makes -0 a 0.
template <class Value>
LAMPO_HOST_DEVICE static inline float decode(Value value, float scale, float minimum) {
  return scale * static_cast<float>(value) + minimum;
}

/// A scale of row `lane`, or with kMinimum a minimum, in units of its block's factor; the set
/// begins at `from`.
template <class Format, bool kMinimum>
LAMPO_HOST_DEVICE static inline float stored_scale(const uint8_t* from, int64_t lane) {
  using formats::ScaleType;
  switch (Format::kScaleType) {
    case ScaleType::kF16:
      return to_float(reinterpret_cast<const F16*>(from)[lane]);
    case ScaleType::kBF16:
      return to_float(reinterpret_cast<const BF16*>(from)[lane]);
    case ScaleType::kHalfE4M3:
    case ScaleType::kFactoredE4M3:
      return 0.5f * to_float(reinterpret_cast<const F8E4M3*>(from)[lane]);
    case ScaleType::kI8:
      return static_cast<float>(reinterpret_cast<const int8_t*>(from)[lane]);
    case ScaleType::kU8:
      return static_cast<float>(from[lane]);
    case ScaleType::kU4:
      return static_cast<float>(kMinimum ? from[lane] >> 4 : from[lane] & 15);
    case ScaleType::kF16OfBlock:
    case ScaleType::kF32OfBlock:
      return 1.0f;
  }
  return 0.0f;
}

/// The factor of row `lane` of the block at `block`: d, or with kMinimum -m or -d z; 1 without
/// factors.
template <class Format, bool kMinimum>
LAMPO_HOST_DEVICE static inline float factor_of(const uint8_t* block, int64_t lane) {
  using Group = StripGroup<Format>;
  if constexpr (!Group::kHasFactors) {
    return 1.0f;
  } else if constexpr (kMinimum && !Group::kHasZeroPoints) {
    return -to_float(reinterpret_cast<const F16*>(block + Group::kMOffset)[lane]);
  } else {
    using D = std::conditional_t<Group::kHasFloatFactors, float, F16>;
    const float d = to_float(reinterpret_cast<const D*>(block)[lane]);
    if constexpr (!kMinimum) return d;
    return -d * static_cast<float>(reinterpret_cast<const int8_t*>(block + Group::kMOffset)[lane]);
  }
}

/// Scale number `set` of row `lane` of the group at `group`, in the block at `block`.
template <class Format>
LAMPO_HOST_DEVICE static inline float scale_of(const uint8_t* block, const uint8_t* group,
                                               int64_t lane, int set = 0) {
  using Group = StripGroup<Format>;
  const uint8_t* from = group + Group::kScaleOffset + set * Group::kScaleSetBytes;
  return factor_of<Format, false>(block, lane) * stored_scale<Format, false>(from, lane);
}

/// Its minimum.
template <class Format>
LAMPO_HOST_DEVICE static inline float minimum_of(const uint8_t* block, const uint8_t* group,
                                                 int64_t lane, int set = 0) {
  using Group = StripGroup<Format>;
  if constexpr (!Format::kHasMinimum) {
    return 0.0f;
  } else {
    const uint8_t* from = group + Group::kMinimumOffset + set * Group::kScaleSetBytes;
    return factor_of<Format, true>(block, lane) * stored_scale<Format, true>(from, lane);
  }
}

/// Sizes of a packed weight.
struct StripLayout {
  int block_size;       // weights of a block of one row in the file
  int block_bytes;      // its bytes there
  int64_t strip_bytes;  // of 16 whole rows
};

static inline StripLayout strip_layout(WeightFormat format, int64_t in_features) {
  StripLayout layout{};
  dispatch_format(format, [&]<class Format>() {
    layout = {Format::kBlockSize, Format::kBlockBytes,
              StripGroup<Format>::strip_bytes(in_features)};
  });
  return layout;
}

}  // namespace lampo
