// SPDX-License-Identifier: Apache-2.0
// A causal depthwise convolution over time, width taps per channel:
//   input_t = gate_in_t * x_t;  y_t = bias + sum_j weight[j] input_{t - width + 1 + j};
//   out_t = gate_out_t * silu(y_t)
// where gates, bias and silu are optional. Inputs before the sequence's first new token come from
// its state; a sequence that begins has zeros there.
//
// A piece of work is four vectors of channels of one sequence, which pass all its tokens with the
// last width - 1 inputs at hand: single vectors would miss the cache, as tokens are far apart.
// Every output is the same chain of multiply-adds whatever the split into calls.
//
// Bytes: x, out and gates once, the state twice. FLOPs: 2 * width per output, about 20 more for
// silu. Memory-bound.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/math.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int kPieceVectors = 4;
constexpr int64_t kPieceChannels = kPieceVectors * F32::kWidth;

/// All new tokens of a sequence in kVectors vectors of channels from `channel` on, or in a single
/// one of n channels.
template <class T, int kWidth, int kVectors>
void convolve(const CausalConvParams& p, int64_t seq, int64_t channel, int n) {
  constexpr int W = F32::kWidth;
  const int width = kVectors > 1 ? W : n;
  const int64_t begin = p.batch.cu_seqlens_q[seq], end = p.batch.cu_seqlens_q[seq + 1];
  const bool first = p.batch.seq_lens[seq] == end - begin;
  float* state = p.state + p.batch.state_slots[seq] * p.stride_state_slot + channel;
  F32 weight[kWidth][kVectors], input[kWidth][kVectors], bias[kVectors];
  for (int c = 0; c < kVectors; ++c) {
    for (int j = 0; j < kWidth; ++j) {
      weight[j][c] = load_n(p.weight + j * p.num_channels + channel + c * W, width);
    }
    for (int j = 1; j < kWidth && !first; ++j) {
      input[j][c] = load_n(state + (j - 1) * p.num_channels + c * W, width);
    }
    if (p.bias != nullptr) bias[c] = load_n(p.bias + channel + c * W, width);
  }
  const auto at = [&](const void* tensor, int64_t offset) {
    return static_cast<const T*>(tensor) + offset + channel;
  };
  for (int64_t token = begin; token < end; ++token) {
    const T* x = at(p.x, token * p.stride_x_token);
    T* out = static_cast<T*>(p.out) + token * p.stride_out_token + channel;
    for (int c = 0; c < kVectors; ++c) {
      for (int j = 0; j < kWidth - 1; ++j) input[j][c] = input[j + 1][c];
      F32& own = input[kWidth - 1][c];
      own = load_n(x + c * W, width);
      if (p.gate_in != nullptr) {
        own = own * load_n(at(p.gate_in, token * p.stride_gate_in_token) + c * W, width);
      }
      F32 y = bias[c];
      for (int j = 0; j < kWidth; ++j) y = fma(weight[j][c], input[j][c], y);
      if (p.silu) y = y * sigmoid(y);
      if (p.gate_out != nullptr) {
        y = y * load_n(at(p.gate_out, token * p.stride_gate_out_token) + c * W, width);
      }
      store_n(out + c * W, y, width);
    }
  }
  for (int c = 0; c < kVectors; ++c) {
    for (int j = 1; j < kWidth; ++j) {
      store_n(state + (j - 1) * p.num_channels + c * W, input[j][c], width);
    }
  }
}

template <class T, int kWidth>
void run(const CausalConvParams& p, const Team& team) {
  const int64_t pieces_per_seq = (p.num_channels + kPieceChannels - 1) / kPieceChannels;
  const Share share = share_of(p.batch.batch_size * pieces_per_seq, team);
  for (int64_t piece = share.begin; piece < share.end; ++piece) {
    const int64_t seq = piece / pieces_per_seq;
    if (p.batch.cu_seqlens_q[seq] == p.batch.cu_seqlens_q[seq + 1]) continue;
    const int64_t channel = piece % pieces_per_seq * kPieceChannels;
    if (p.num_channels - channel >= kPieceChannels) {
      convolve<T, kWidth, kPieceVectors>(p, seq, channel, F32::kWidth);
    } else {
      for_each_vector(p.num_channels - channel,
                      [&](int64_t i, int n) { convolve<T, kWidth, 1>(p, seq, channel + i, n); });
    }
  }
}

}  // namespace

void causal_conv(const CausalConvParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_int<2, 3, 4>(p.width, [&]<int kWidth>() { run<T, kWidth>(p, team); });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
