// SPDX-License-Identifier: Apache-2.0
// Packed weights: rows in groups of 32 codes of up to 8 bits, with a scale and perhaps a minimum
// (both f16) per group, stored in the order in which the kernels read them.
//
// A format is a struct in a file of its own, and an entry of WeightFormats below; nothing else
// names a format. It has
//   kName                 the format in Python and in error messages
//   kGroupSize            weights of a group: kGroupSize
//   kCodeBits             bits of a code in a strip: 4 (unsigned) or 8 (int8)
//   kOffset               w = scale (code - kOffset) + minimum; 0 for 8 bits and beside a minimum
//   kHasMinimum           otherwise the minimum is 0 and not stored
//   kBlockBytes           bytes of a group of one row in the file
//   read_block(block, codes, scale, minimum)   takes such a block apart; codes as a strip has them:
//                         kCodeBits 8: code i in byte i; 4: code i in the lower, code 16 + i in the
//                         upper four bits of byte i
//   decode(code, scale, minimum)               one weight
// A format with codes of 5 to 7 bits has kCodeBits 8: its read_block widens them.
//
// A strip is kStripRows = 16 rows. For each group of 32 inputs in turn it holds
//   codes   [words][16 rows][4 bytes]   the 4-byte words of 16 rows, side by side
//   scale   [16 rows] f16
//   minimum [16 rows] f16               with kHasMinimum only
// so one 64-byte load gives each of 16 rows its next 4 bytes, and one 32-byte load 16 scales, and a
// thread reads its share of a matrix from one end to the other. With the scales at the end of each
// strip, hardware prefetchers lost track: 15 GB/s a thread against 25. Missing rows of the last
// strip are zero.
#pragma once

#include "common/formats/q4_0.h"
#include "common/formats/q4_1.h"
#include "common/formats/q8_0.h"

namespace lampo {

/// A format at run time: its place in WeightFormats.
enum class WeightFormat : uint8_t {};

template <class... Formats>
struct FormatList {};

using WeightFormats = FormatList<formats::Q4_0, formats::Q4_1, formats::Q8_0>;

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

/// A group of a strip. Offsets and sizes in bytes.
template <class Format>
struct StripGroup {
  static_assert(Format::kGroupSize == kGroupSize);
  static_assert(Format::kCodeBits == 4 || Format::kCodeBits == 8);
  static_assert(Format::kOffset == 0 || (Format::kCodeBits == 4 && !Format::kHasMinimum));

  static constexpr int kCodesPerByte = 8 / Format::kCodeBits;
  static constexpr int kRowBytes = kGroupSize / kCodesPerByte;
  static constexpr int kWords = kRowBytes / 4;
  static constexpr int kScaleOffset = kRowBytes * kStripRows;
  static constexpr int kMinimumOffset = kScaleOffset + 2 * kStripRows;
  static constexpr int kBytes = kMinimumOffset + (Format::kHasMinimum ? 2 * kStripRows : 0);
};

/// Code number `part` of a byte, 0 .. kCodesPerByte - 1. Byte i of a row of a group holds the codes
/// part * kRowBytes + i.
template <class Format>
LAMPO_HOST_DEVICE static inline int code_of(uint32_t byte, int part) {
  if constexpr (Format::kCodeBits == 8) {
    return static_cast<int8_t>(byte);
  } else {
    return static_cast<int>(byte >> 4 * part & 15);
  }
}

/// The scale of row `lane` of the group at `group`.
template <class Format>
LAMPO_HOST_DEVICE static inline float scale_of(const uint8_t* group, int64_t lane) {
  return to_float(reinterpret_cast<const F16*>(group + StripGroup<Format>::kScaleOffset)[lane]);
}

/// Its minimum.
template <class Format>
LAMPO_HOST_DEVICE static inline float minimum_of(const uint8_t* group, int64_t lane) {
  if constexpr (Format::kHasMinimum) {
    return to_float(reinterpret_cast<const F16*>(group + StripGroup<Format>::kMinimumOffset)[lane]);
  } else {
    return 0.0f;
  }
}

/// Sizes of a packed weight, in bytes where they say so.
struct StripLayout {
  int block_bytes;      // of a group of one row in the file
  int64_t groups;       // of a row
  int64_t strip_bytes;  // of all groups of 16 rows
};

static inline StripLayout strip_layout(WeightFormat format, int64_t in_features) {
  StripLayout layout{};
  dispatch_format(format, [&]<class Format>() {
    const int64_t groups = in_features / kGroupSize;
    layout = {Format::kBlockBytes, groups, groups * StripGroup<Format>::kBytes};
  });
  return layout;
}

}  // namespace lampo
