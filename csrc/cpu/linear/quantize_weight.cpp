// SPDX-License-Identifier: Apache-2.0
// Rows of floats to blocks of codes (common/formats/formats.h).
//
// A group of weights x with one scale is approximated by s q - t (t = 0 without a minimum), with
// integers q in the format's range. For given q the best s and t solve a linear least-squares
// problem; q follows from s and t by rounding. A search tries kSteps scales around the one that
// maps the largest weight to the end of the range, rounds, solves, and keeps what leaves the least
// error. Errors are weighted: a large weight is multiplied with activations as often as a small
// one, but its relative error is what the next layers see; |x| + rms(x) is a compromise.
// Integer scales of a block are rounded next, and the codes are chosen again for the scales as
// they are stored.
//
// Work: about kSteps * 10 operations per weight, once at load. A thread owns whole rows.
#include "common/dispatch.h"
#include "common/formats/formats.h"
#include "cpu/kernel_table.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int kSteps = 19;

/// Scale and minimum of a group: x ~ scale q - minimum, minimum >= 0.
struct Fit {
  float scale = 0.0f, minimum = 0.0f;
};

static inline float clamp(float x, float low, float high) {
  return x < low ? low : x > high ? high : x;
}
static inline float nearest(float x) { return __builtin_rintf(x); }

/// The weights of the errors of a group.
template <int kSize>
void error_weights(const float* x, float (&weights)[kSize]) {
  float squares = 0.0f;
  for (int i = 0; i < kSize; ++i) squares += x[i] * x[i];
  const float rms = __builtin_sqrtf(squares / kSize);
  for (int i = 0; i < kSize; ++i) weights[i] = rms + __builtin_fabsf(x[i]);
}

/// The best scale for codes in [low, high], without a minimum.
template <int kSize>
Fit fit_scale(const float* x, float low, float high) {
  float weights[kSize];
  error_weights(x, weights);
  float largest = 0.0f;  // with its sign: the longer end of the range is for it
  for (int i = 0; i < kSize; ++i) {
    if (__builtin_fabsf(x[i]) > __builtin_fabsf(largest)) largest = x[i];
  }
  if (!(__builtin_fabsf(largest) > 1e-30f)) return {};
  const float end = -low > high ? low : high;
  float best = -1.0f, scale = 0.0f;
  for (int step = 0; step < kSteps; ++step) {
    const float inverse = (end + 0.1f * static_cast<float>(step - kSteps / 2)) / largest;
    float xq = 0.0f, qq = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float q = clamp(nearest(inverse * x[i]), low, high);
      xq += weights[i] * x[i] * q;
      qq += weights[i] * q * q;
    }
    if (qq > 0.0f && xq * xq > best * qq) {
      best = xq * xq / qq;
      scale = xq / qq;
    }
  }
  return {scale, 0.0f};
}

/// The best scale and minimum for codes in [0, high].
template <int kSize>
Fit fit_range(const float* x, float high) {
  float weights[kSize];
  error_weights(x, weights);
  float low = 0.0f, top = x[0];
  float w = 0.0f, wx = 0.0f;
  for (int i = 0; i < kSize; ++i) {
    low = x[i] < low ? x[i] : low;
    top = x[i] > top ? x[i] : top;
    w += weights[i];
    wx += weights[i] * x[i];
  }
  if (!(top > low)) return {0.0f, -low};
  Fit best{(top - low) / high, -low};
  float least = -1.0f;
  for (int step = 0; step < kSteps; ++step) {
    const float inverse = (high + 0.1f * static_cast<float>(step - kSteps / 2)) / (top - low);
    float q[kSize];
    float wq = 0.0f, wqq = 0.0f, wqx = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      q[i] = clamp(nearest(inverse * (x[i] - low)), 0.0f, high);
      wq += weights[i] * q[i];
      wqq += weights[i] * q[i] * q[i];
      wqx += weights[i] * q[i] * x[i];
    }
    const float determinant = w * wqq - wq * wq;
    if (!(determinant > 0.0f)) continue;
    Fit fit{(w * wqx - wx * wq) / determinant, -(wqq * wx - wq * wqx) / determinant};
    if (fit.minimum < 0.0f) fit = {wqx / wqq, 0.0f};
    float error = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float off = fit.scale * q[i] - fit.minimum - x[i];
      error += weights[i] * off * off;
    }
    if (least < 0.0f || error < least) {
      least = error;
      best = fit;
    }
  }
  return best;
}

static inline float store_half(float value, uint8_t* to) {
  const F16 half = from_float<F16>(value);
  memcpy(to, &half, 2);
  return to_float(half);
}

/// Codes of a group for the scale and the minimum as they are stored.
template <class Format>
void choose_codes(const float* x, Fit fit, uint8_t* codes) {
  constexpr bool kSigned = Format::kCodeBits == 8;
  constexpr float kLow = kSigned ? -127.0f : -static_cast<float>(Format::kOffset);
  constexpr float kHigh =
      kSigned ? 127.0f : static_cast<float>((1 << Format::kCodeBits) - 1 - Format::kOffset);
  const float inverse = fit.scale != 0.0f ? 1.0f / fit.scale : 0.0f;
  for (int i = 0; i < Format::kScaleSize; ++i) {
    const float q = clamp(nearest(inverse * (x[i] + fit.minimum)), kLow, kHigh);
    codes[i] = static_cast<uint8_t>(static_cast<int>(q) + Format::kOffset);
  }
}

template <class Format>
Fit fit_group(const float* x) {
  constexpr int kSize = Format::kScaleSize;
  if constexpr (Format::kHasMinimum) {
    return fit_range<kSize>(x, static_cast<float>((1 << Format::kCodeBits) - 1));
  } else if constexpr (Format::kCodeBits == 8) {
    float largest = 0.0f;
    for (int i = 0; i < kSize; ++i) {
      const float size = __builtin_fabsf(x[i]);
      largest = size > largest ? size : largest;
    }
    return {largest / 127.0f, 0.0f};
  } else {
    constexpr float kHigh = static_cast<float>((1 << Format::kCodeBits) - 1 - Format::kOffset);
    return fit_scale<kSize>(x, -static_cast<float>(Format::kOffset), kHigh);
  }
}

template <class Format>
void quantize_block(const float* x, formats::Block& block) {
  constexpr int kGroups = Format::kBlockSize / Format::kScaleSize;
  Fit fits[kGroups];
  for (int g = 0; g < kGroups; ++g) fits[g] = fit_group<Format>(x + g * Format::kScaleSize);
  if constexpr (StripGroup<Format>::kHasFactors) {
    constexpr bool kSigned = Format::kScaleType == formats::ScaleType::kI8;
    constexpr float kMost = kSigned ? 127.0f : 63.0f;
    float most_scale = 0.0f, most_minimum = 0.0f;
    for (const Fit& fit : fits) {
      const float size = __builtin_fabsf(fit.scale);
      most_scale = size > most_scale ? size : most_scale;
      most_minimum = fit.minimum > most_minimum ? fit.minimum : most_minimum;
    }
    const float d = store_half(most_scale / kMost, block.d);
    const float m = Format::kHasMinimum ? store_half(most_minimum / kMost, block.m) : 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      const float low = kSigned ? -kMost : 0.0f;
      const float s = d > 0.0f ? clamp(nearest(fits[g].scale / d), low, kMost) : 0.0f;
      const float t = m > 0.0f ? clamp(nearest(fits[g].minimum / m), 0.0f, kMost) : 0.0f;
      block.scales[g][0] = static_cast<uint8_t>(static_cast<int>(s));
      block.minima[g][0] = static_cast<uint8_t>(static_cast<int>(t));
      fits[g] = {d * s, m * t};
    }
  } else {
    for (int g = 0; g < kGroups; ++g) {
      fits[g].scale = store_half(fits[g].scale, block.scales[g]);
      if constexpr (Format::kHasMinimum) {
        fits[g].minimum = -store_half(-fits[g].minimum, block.minima[g]);
      }
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    const int first = g * Format::kScaleSize;
    choose_codes<Format>(x + first, fits[g], block.codes + first);
  }
}

template <class Format, class T>
void quantize(const QuantizeWeightParams& p, Share rows) {
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* from = static_cast<const T*>(p.weight) + row * p.stride_weight_row;
    uint8_t* to = static_cast<uint8_t*>(p.blocks) + row * p.stride_blocks_row;
    for (int64_t i = 0; i < p.in_features; i += Format::kBlockSize, to += Format::kBlockBytes) {
      float x[Format::kBlockSize];
      for (int j = 0; j < Format::kBlockSize; ++j) {
        const float value = to_float(from[i + j]);
        x[j] = __builtin_isfinite(value) ? value : 0.0f;
      }
      formats::Block block;
      quantize_block<Format>(x, block);
      Format::write(block, to);
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
