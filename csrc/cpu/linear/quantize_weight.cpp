// SPDX-License-Identifier: Apache-2.0
// Rows of floats to blocks of codes (common/formats/formats.h).
//
// A group of weights x with one scale is approximated by s q - t (t = 0 without a minimum), with q
// from the format's range or table. For given q the best s and t solve a linear least-squares
// problem; q follows from s and t by rounding. A search tries kSteps scales around the one that
// maps the largest weight to the end of the range, rounds, solves, and keeps the one with the least
// error. Errors of a group count alike where it has a minimum. Elsewhere they count |x| + 2 rms(x)
// times: on SmolLM2 that costs Q3_K and Q4_0 1.5 % less of the outputs' error, and with a minimum
// 1 to 7 % more.
//
// Integer scales: a block's factors d and m map its largest scale and minimum to the ends of their
// ranges. Then in turn, kRounds times: each group takes the best of the integers around its scale
// and minimum, with the codes that follow, and the block solves for d and m. What is stored is the
// best of these.
//
// A lane per group: 16 groups of a row are transposed, so that all sums are within lanes, and bits
// do not depend on the width of registers. A thread owns whole rows.
#include "common/dispatch.h"
#include "common/formats/formats.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/vec.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int kSteps = 19;
constexpr int kRounds = 2;
constexpr int kLanes = 16;
constexpr float kTiny = 1e-9f;  // groups of smaller weights become 0, as f16 scales would

/// Groups side by side. Weight i of group g is x[i][g]; its error counts `weight[i][g]` times.
template <int kSize>
struct Tile {
  float x[kSize][kLanes];
  float weight[kSize][kLanes];
  float largest[kLanes];  // with its sign
};

/// Scales and minima of the groups of a tile: x ~ scale q - minimum, minimum >= 0.
struct Fits {
  float scale[kLanes], minimum[kLanes];
};

static inline F32 abs(F32 a) { return max(a, -a); }

/// The codes of a format as numbers, in units of the scale.
template <class Format>
struct Codes {
  static constexpr bool kSigned = Format::kCodeBits == 8;
  static constexpr float low() {
    if constexpr (HasTable<Format>) return Format::kTable[0];
    return kSigned ? -127.0f : -static_cast<float>(Format::kOffset);
  }
  static constexpr float high() {
    if constexpr (HasTable<Format>) return Format::kTable[15];
    return kSigned ? 127.0f : static_cast<float>((1 << Format::kCodeBits) - 1 - Format::kOffset);
  }
  /// The longer end of the range.
  static constexpr float end() { return -low() > high() ? low() : high(); }
  /// The distance of the codes there.
  static constexpr float unit() {
    if constexpr (HasTable<Format>) return Format::kTable[1] - Format::kTable[0];
    return 1.0f;
  }
  static F32 nearest(F32 y) {
    if constexpr (HasTable<Format>) {
      F32 found{Format::kTable[0]};
      for (int k = 1; k < 16; ++k) {
        const F32 middle{0.5f * static_cast<float>(Format::kTable[k - 1] + Format::kTable[k])};
        found = select_less(y, middle, found, F32{static_cast<float>(Format::kTable[k])});
      }
      return found;
    } else {
      return round_even(min(max(y, F32{low()}), F32{high()}));
    }
  }
  static uint8_t stored(float value) {
    if constexpr (HasTable<Format>) {
      int code = 0;
      while (static_cast<float>(Format::kTable[code]) != value) ++code;
      return static_cast<uint8_t>(code);
    } else {
      return static_cast<uint8_t>(static_cast<int>(value) + Format::kOffset);
    }
  }
};

/// The best scales of kWidth groups, without minima.
template <class Format, int kSize>
void fit_scales(const Tile<kSize>& tile, int lane, Fits& fits) {
  using C = Codes<Format>;
  const F32 largest = load(tile.largest + lane);
  F32 best{-1.0f}, scale;
  for (int step = 0; step < kSteps; ++step) {
    const float end = C::end() + 0.1f * C::unit() * static_cast<float>(step - kSteps / 2);
    const F32 inverse = F32{end} / largest;
    F32 xq, qq;
    for (int i = 0; i < kSize; ++i) {
      const F32 x = load(tile.x[i] + lane);
      const F32 q = C::nearest(inverse * x);
      const F32 weighted = load(tile.weight[i] + lane) * q;
      xq = xq + weighted * x;
      qq = qq + weighted * q;
    }
    const F32 found = xq / qq;
    const F32 gain = found * xq;
    scale = select_less(best, gain, found, scale);
    best = select_less(best, gain, gain, best);
  }
  store(fits.scale + lane, scale);
  store(fits.minimum + lane, F32{});
}

/// The best scales and minima of kWidth groups, for codes in [0, high].
template <class Format, int kSize>
void fit_ranges(const Tile<kSize>& tile, int lane, Fits& fits) {
  using C = Codes<Format>;
  F32 low, top = load(tile.x[0] + lane), w, wx;
  for (int i = 0; i < kSize; ++i) {
    const F32 x = load(tile.x[i] + lane), weight = load(tile.weight[i] + lane);
    low = min(low, x);
    top = max(top, x);
    w = w + weight;
    wx = wx + weight * x;
  }
  const F32 span = max(top - low, F32{kTiny});
  F32 least, scale, minimum = -low;  // all codes 0
  for (int i = 0; i < kSize; ++i) {
    const F32 off = low - load(tile.x[i] + lane);
    least = least + load(tile.weight[i] + lane) * off * off;
  }
  for (int step = 0; step < kSteps; ++step) {
    const F32 inverse = F32{C::high() + 0.1f * static_cast<float>(step - kSteps / 2)} / span;
    F32 wq, wqq, wqx;
    for (int i = 0; i < kSize; ++i) {
      const F32 x = load(tile.x[i] + lane);
      const F32 q = C::nearest(inverse * (x - low));
      const F32 weighted = load(tile.weight[i] + lane) * q;
      wq = wq + weighted;
      wqq = wqq + weighted * q;
      wqx = wqx + weighted * x;
    }
    const F32 determinant = w * wqq - wq * wq;
    const F32 alone = wqx / max(wqq, F32{1e-30f});  // the best scale without a minimum
    F32 s = (w * wqx - wx * wq) / determinant;
    F32 t = (wq * wqx - wqq * wx) / determinant;
    const F32 parallel = F32{1e-6f} * w * wqq;  // all q are equal: s and t are not determined
    t = select_less(determinant, parallel, F32{}, t);
    s = select_less(determinant, parallel, alone, s);
    s = select_less(t, F32{}, alone, s);
    t = max(t, F32{});
    F32 error;
    for (int i = 0; i < kSize; ++i) {
      const F32 x = load(tile.x[i] + lane);
      const F32 q = C::nearest(inverse * (x - low));
      const F32 off = s * q - t - x;
      error = error + load(tile.weight[i] + lane) * off * off;
    }
    scale = select_less(error, least, s, scale);
    minimum = select_less(error, least, t, minimum);
    least = min(error, least);
  }
  store(fits.scale + lane, scale);
  store(fits.minimum + lane, minimum);
}

static inline float store_half(float value, uint8_t* to) {
  const F16 half = from_float<F16>(value);
  memcpy(to, &half, 2);
  return to_float(half);
}

static inline float half(float value) { return to_float(from_float<F16>(value)); }

/// 1 / a, or 0 for 0.
static inline F32 inverse_of(F32 a) { return select_less(F32{}, abs(a), F32{1.0f} / a, F32{}); }

/// The tile's codes for given scales and minima, as numbers, and the groups' errors.
template <class Format, int kSize>
F32 error_of(const Tile<kSize>& tile, int lane, F32 scale, F32 minimum) {
  const F32 inverse = inverse_of(scale);
  F32 error;
  for (int i = 0; i < kSize; ++i) {
    const F32 x = load(tile.x[i] + lane);
    const F32 q = Codes<Format>::nearest(inverse * (x + minimum));
    const F32 off = scale * q - minimum - x;
    error = error + load(tile.weight[i] + lane) * off * off;
  }
  return error;
}

/// Integer scales of a tile's groups, and the factors of their blocks, one per lane.
template <class Format>
struct Integers {
  static constexpr bool kSigned = Format::kScaleType == formats::ScaleType::kI8;
  static constexpr float kMost = static_cast<float>(Format::kLargestScale);
  static constexpr float kLeast = kSigned ? -kMost - 1.0f : 0.0f;
  static constexpr int kGroups = Format::kBlockSize / Format::kScaleSize;

  float s[kLanes], t[kLanes], d[kLanes], m[kLanes], error[kLanes];

  /// Factors that map the largest scale and minimum to the ends.
  void start(const Fits& fits) {
    for (int first = 0; first < kLanes; first += kGroups) {
      float largest = 0.0f, minimum = 0.0f;
      for (int g = first; g < first + kGroups; ++g) {
        if (__builtin_fabsf(fits.scale[g]) > __builtin_fabsf(largest)) largest = fits.scale[g];
        minimum = fits.minimum[g] > minimum ? fits.minimum[g] : minimum;
      }
      const float factor = half(largest / (kSigned ? kLeast : kMost));
      const float shift = half(minimum / kMost);
      for (int g = first; g < first + kGroups; ++g) d[g] = factor, m[g] = shift;
    }
    for (int lane = 0; lane < kLanes; lane += F32::kWidth) {
      const F32 scale = load(fits.scale + lane) * inverse_of(load(d + lane));
      const F32 minimum = load(fits.minimum + lane) * inverse_of(load(m + lane));
      store(s + lane, round_even(min(max(scale, F32{kLeast}), F32{kMost})));
      store(t + lane, round_even(min(max(minimum, F32{}), F32{kMost})));
    }
  }

  /// Each group's best integers beside the present ones.
  template <int kSize>
  void choose(const Tile<kSize>& tile) {
    for (int lane = 0; lane < kLanes; lane += F32::kWidth) {
      const F32 factor = load(d + lane), shift = load(m + lane);
      const F32 old_s = load(s + lane), old_t = load(t + lane);
      F32 best_s = old_s, best_t = old_t, least{3e38f};
      constexpr int kReach = Format::kHasMinimum ? 1 : 0;
      for (int i = -1; i <= 1; ++i) {
        const F32 new_s = min(max(old_s + F32{static_cast<float>(i)}, F32{kLeast}), F32{kMost});
        for (int j = -kReach; j <= kReach; ++j) {
          const F32 new_t = min(max(old_t + F32{static_cast<float>(j)}, F32{}), F32{kMost});
          const F32 found = error_of<Format>(tile, lane, factor * new_s, shift * new_t);
          best_s = select_less(found, least, new_s, best_s);
          best_t = select_less(found, least, new_t, best_t);
          least = min(found, least);
        }
      }
      store(s + lane, best_s);
      store(t + lane, best_t);
      store(error + lane, least);
    }
  }

  /// The best factors for the present integers and codes.
  template <int kSize>
  void solve(const Tile<kSize>& tile) {
    float dd[kLanes], dm[kLanes], mm[kLanes], dx[kLanes], mx[kLanes];
    for (int lane = 0; lane < kLanes; lane += F32::kWidth) {
      const F32 scale = load(s + lane), minimum = load(t + lane);
      const F32 shift = load(m + lane) * minimum;
      const F32 inverse = inverse_of(load(d + lane) * scale);
      F32 w, wx, wq, wqq, wqx;
      for (int i = 0; i < kSize; ++i) {
        const F32 x = load(tile.x[i] + lane), weight = load(tile.weight[i] + lane);
        const F32 q = Codes<Format>::nearest(inverse * (x + shift));
        w = w + weight;
        wx = wx + weight * x;
        wq = wq + weight * q;
        wqq = wqq + weight * q * q;
        wqx = wqx + weight * q * x;
      }
      store(dd + lane, scale * scale * wqq);
      store(dm + lane, scale * minimum * wq);
      store(mm + lane, minimum * minimum * w);
      store(dx + lane, scale * wqx);
      store(mx + lane, minimum * wx);
    }
    for (int first = 0; first < kLanes; first += kGroups) {
      float a = 0.0f, b = 0.0f, c = 0.0f, e = 0.0f, f = 0.0f;
      for (int g = first; g < first + kGroups; ++g) {
        a += dd[g], b += dm[g], c += mm[g], e += dx[g], f += mx[g];
      }
      // The minimum of the sum of weight (d s q - m t - x)^2.
      float factor = d[first], shift = m[first];
      const float determinant = a * c - b * b;
      if (Format::kHasMinimum && determinant > 1e-6f * a * c) {
        factor = (e * c - b * f) / determinant;
        shift = (e * b - a * f) / determinant;
      } else if (a > 0.0f) {
        factor = (e + b * shift) / a;
      }
      factor = half(factor);
      shift = half(shift > 0.0f ? shift : 0.0f);
      for (int g = first; g < first + kGroups; ++g) d[g] = factor, m[g] = shift;
    }
  }

  /// Takes over the blocks of `other` with smaller errors.
  void take_better(const Integers& other) {
    for (int first = 0; first < kLanes; first += kGroups) {
      float mine = 0.0f, its = 0.0f;
      for (int g = first; g < first + kGroups; ++g) mine += error[g], its += other.error[g];
      if (!(its < mine)) continue;
      for (int g = first; g < first + kGroups; ++g) {
        s[g] = other.s[g], t[g] = other.t[g], d[g] = other.d[g], m[g] = other.m[g];
        error[g] = other.error[g];
      }
    }
  }
};

template <class Format>
constexpr int kBlocks = kLanes * Format::kScaleSize / Format::kBlockSize;  // of a tile

/// Scales as the blocks store them; `fits` become those.
template <class Format, int kSize>
void store_scales(const Tile<kSize>& tile, Fits& fits, formats::Block (&blocks)[kBlocks<Format>]) {
  constexpr int kGroups = Format::kBlockSize / Format::kScaleSize;
  if constexpr (StripGroup<Format>::kHasFactors) {
    Integers<Format> best;
    best.start(fits);
    best.choose(tile);
    Integers<Format> next = best;
    for (int round = 0; round < kRounds; ++round) {
      next.solve(tile);
      next.choose(tile);
      best.take_better(next);
    }
    for (int g = 0; g < kLanes; ++g) {
      formats::Block& block = blocks[g / kGroups];
      const int scale = static_cast<int>(best.s[g]), minimum = static_cast<int>(best.t[g]);
      const bool both = Format::kScaleType == formats::ScaleType::kU4;
      block.scales[g % kGroups][0] = static_cast<uint8_t>(both ? scale | minimum << 4 : scale);
      block.minima[g % kGroups][0] = static_cast<uint8_t>(minimum);
      fits.scale[g] = store_half(best.d[g], block.d) * best.s[g];
      fits.minimum[g] = store_half(best.m[g], block.m) * best.t[g];
    }
  } else {
    for (int g = 0; g < kLanes; ++g) {
      formats::Block& block = blocks[g / kGroups];
      fits.scale[g] = store_half(fits.scale[g], block.scales[g % kGroups]);
      if constexpr (Format::kHasMinimum) {
        fits.minimum[g] = -store_half(-fits.minimum[g], block.minima[g % kGroups]);
      }
    }
  }
}

/// Codes for the scales and minima as they are stored.
template <class Format, int kSize>
void store_codes(const Tile<kSize>& tile, const Fits& fits,
                 formats::Block (&blocks)[kBlocks<Format>]) {
  constexpr int kGroups = Format::kBlockSize / Format::kScaleSize;
  for (int lane = 0; lane < kLanes; lane += F32::kWidth) {
    const F32 inverse = inverse_of(load(fits.scale + lane)), minimum = load(fits.minimum + lane);
    for (int i = 0; i < kSize; ++i) {
      float values[F32::kWidth];
      store(values, Codes<Format>::nearest(inverse * (load(tile.x[i] + lane) + minimum)));
      for (int j = 0; j < F32::kWidth; ++j) {
        const int g = lane + j;
        blocks[g / kGroups].codes[g % kGroups * kSize + i] = Codes<Format>::stored(values[j]);
      }
    }
  }
}

/// A tile of the groups from `from` on; beyond `count` weights it is zero.
template <class Format, int kSize, class T>
void read_tile(const T* from, int64_t count, Tile<kSize>& tile) {
  for (int g = 0; g < kLanes; ++g) {
    float squares = 0.0f, largest = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const int64_t at = g * kSize + i;
      float x = at < count ? to_float(from[at]) : 0.0f;
      x = __builtin_isfinite(x) ? x : 0.0f;
      tile.x[i][g] = x;
      squares += x * x;
      if (__builtin_fabsf(x) > __builtin_fabsf(largest)) largest = x;
    }
    const bool tiny = !(__builtin_fabsf(largest) > kTiny);
    const float rms = __builtin_sqrtf(squares / kSize);
    for (int i = 0; i < kSize; ++i) {
      if (tiny) tile.x[i][g] = 0.0f;
      const float counts = Format::kHasMinimum ? rms : 2.0f * rms + __builtin_fabsf(tile.x[i][g]);
      tile.weight[i][g] = tiny ? 1.0f : counts;
    }
    tile.largest[g] = tiny ? 1.0f : largest;
  }
}

template <class Format, int kSize>
void fit(const Tile<kSize>& tile, Fits& fits) {
  for (int lane = 0; lane < kLanes; lane += F32::kWidth) {
    if constexpr (Format::kHasMinimum) {
      fit_ranges<Format>(tile, lane, fits);
    } else if constexpr (Format::kCodeBits == 8) {
      store(fits.scale + lane, abs(load(tile.largest + lane)) / F32{127.0f});
      store(fits.minimum + lane, F32{});
    } else {
      fit_scales<Format>(tile, lane, fits);
    }
  }
}

/// The tile's blocks, of `count` weights at most. Not in line: one copy serves all types of
/// weights.
template <class Format, int kSize>
[[gnu::noinline]] void quantize_tile(const Tile<kSize>& tile, int64_t count, uint8_t* to) {
  Fits fits;
  formats::Block blocks[kBlocks<Format>];
  fit<Format>(tile, fits);
  store_scales<Format>(tile, fits, blocks);
  store_codes<Format>(tile, fits, blocks);
  for (int b = 0; b < kBlocks<Format> && b * Format::kBlockSize < count; ++b) {
    Format::write(blocks[b], to + b * Format::kBlockBytes);
  }
}

template <class Format, class T>
void quantize(const QuantizeWeightParams& p, Share rows) {
  constexpr int kSize = Format::kScaleSize;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* from = static_cast<const T*>(p.weight) + row * p.stride_weight_row;
    uint8_t* to = static_cast<uint8_t*>(p.blocks) + row * p.stride_blocks_row;
    for (int64_t i = 0; i < p.in_features; i += kLanes * kSize) {
      Tile<kSize> tile;
      read_tile<Format>(from + i, p.in_features - i, tile);
      quantize_tile<Format>(tile, p.in_features - i, to);
      to += kBlocks<Format> * Format::kBlockBytes;
    }
  }
}

}  // namespace

void quantize_weight(const QuantizeWeightParams& p, const Team& team) {
  dispatch_format(p.format, [&]<class Format>() {
    if constexpr (CanWrite<Format>) {
      dispatch_dtype<float, BF16, F16>(
          p.weight_dtype, [&]<class T>() { quantize<Format, T>(p, share_of(p.rows, team)); });
    }
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
