// SPDX-License-Identifier: Apache-2.0
// A causal depthwise convolution over time, width taps per channel:
//   input_t = gate_in_t * x_t;  y_t = bias + sum_j weight[j] input_{t - width + 1 + j};
//   out_t = gate_out_t * silu(y_t)
// where gates, bias and silu are optional. Inputs before the sequence's first new token come from
// its state; a sequence that begins has zeros there.
//
// A piece of work is 64 channels of one sequence: a vector of channels passes all its tokens with
// the last width - 1 inputs in registers. Every output is the same chain of multiply-adds whatever
// the split into calls.
//
// Bytes: x, out and gates once, the state twice. FLOPs: 2 * width per output, about 20 more for
// silu. Memory-bound.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/math.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int64_t kPieceChannels = 64;

/// `n` channels from `channel` on, all new tokens of a sequence.
template <class T, int kWidth>
void convolve(const CausalConvParams& p, int64_t seq, int64_t channel, int n) {
  const int64_t begin = p.batch.cu_seqlens_q[seq], end = p.batch.cu_seqlens_q[seq + 1];
  const bool first = p.batch.seq_lens[seq] == end - begin;
  float* state = p.state + p.batch.state_slots[seq] * p.stride_state_slot + channel;
  F32 weight[kWidth], input[kWidth];
  for (int j = 0; j < kWidth; ++j) weight[j] = load_n(p.weight + j * p.num_channels + channel, n);
  if (!first) {
    for (int j = 0; j < kWidth - 1; ++j) input[j + 1] = load_n(state + j * p.num_channels, n);
  }
  const F32 bias = p.bias == nullptr ? F32() : load_n(p.bias + channel, n);
  const T* x = static_cast<const T*>(p.x) + channel;
  const T* gate_in = static_cast<const T*>(p.gate_in) + channel;
  const T* gate_out = static_cast<const T*>(p.gate_out) + channel;
  T* out = static_cast<T*>(p.out) + channel;
  for (int64_t token = begin; token < end; ++token) {
    for (int j = 0; j < kWidth - 1; ++j) input[j] = input[j + 1];
    input[kWidth - 1] = load_n(x + token * p.stride_x_token, n);
    if (p.gate_in != nullptr) {
      input[kWidth - 1] = input[kWidth - 1] * load_n(gate_in + token * p.stride_gate_in_token, n);
    }
    F32 y = bias;
    for (int j = 0; j < kWidth; ++j) y = fma(weight[j], input[j], y);
    if (p.silu) y = y * sigmoid(y);
    if (p.gate_out != nullptr) y = y * load_n(gate_out + token * p.stride_gate_out_token, n);
    store_n(out + token * p.stride_out_token, y, n);
  }
  for (int j = 0; j < kWidth - 1; ++j) store_n(state + j * p.num_channels, input[j + 1], n);
}

template <class T, int kWidth>
void run(const CausalConvParams& p, const Team& team) {
  const int64_t pieces_per_seq = (p.num_channels + kPieceChannels - 1) / kPieceChannels;
  const Share share = share_of(p.batch.batch_size * pieces_per_seq, team);
  for (int64_t piece = share.begin; piece < share.end; ++piece) {
    const int64_t seq = piece / pieces_per_seq;
    if (p.batch.cu_seqlens_q[seq] == p.batch.cu_seqlens_q[seq + 1]) continue;
    const int64_t channel = piece % pieces_per_seq * kPieceChannels;
    const int64_t left = p.num_channels - channel;
    for_each_vector(left < kPieceChannels ? left : kPieceChannels,
                    [&](int64_t i, int n) { convolve<T, kWidth>(p, seq, channel + i, n); });
  }
}

}  // namespace

void causal_conv(const CausalConvParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_int<2, 3, 4>(p.width, [&]<int kWidth>() { run<T, kWidth>(p, team); });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
