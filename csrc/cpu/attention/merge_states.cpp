// SPDX-License-Identifier: Apache-2.0
// out = sum_i e^(lse_i - lse) out_i with lse = log sum_i e^lse_i, over partial attention results.
//
// out_partial [num_splits, num_tokens, num_heads, head_dim], lse_partial [num_splits, num_tokens,
// num_heads]. Rows (token, head) are divided among threads; a row folds its splits in order, as
// paged_attention does, in f32. A split with lse -inf is not read. Bytes: the partials once.
// Memory-bound.
#include "common/dispatch.h"
#include "cpu/attention/online_softmax.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int64_t kMaxHeadDim = 1024;

template <class T>
void run(const MergeStatesParams& p, const Team& team) {
  const Share share = share_of(p.num_tokens * p.num_heads, team);
  const int64_t whole = p.head_dim / F32::kWidth * F32::kWidth;
  const int64_t width = (p.head_dim + F32::kWidth - 1) / F32::kWidth * F32::kWidth;
  for (int64_t row = share.begin; row < share.end; ++row) {
    const int64_t token = row / p.num_heads;
    const int64_t head = row % p.num_heads;
    alignas(64) float acc[kMaxHeadDim] = {};
    alignas(64) float tail[kMaxHeadDim];
    float m = kMinusInfinity;
    float l = 0.0f;
    for (int64_t split = 0; split < p.num_splits; ++split) {
      const float lse = p.lse_partial[split * p.stride_lse_partial_split +
                                      token * p.stride_lse_partial_token + head];
      if (lse == kMinusInfinity) continue;
      const float* from = p.out_partial + split * p.stride_out_partial_split +
                          token * p.stride_out_partial_token + head * p.stride_out_partial_head;
      if (whole != p.head_dim) {
        for_each_vector(p.head_dim,
                        [&](int64_t i, int n) { store(tail + i, load_n(from + i, n)); });
        from = tail;
      }
      fold_state(&m, &l, acc, lse, 1.0f, from, width);
    }
    const float lse = finish_state(m, l, acc, nullptr, width);
    T* out = static_cast<T*>(p.out) + token * p.stride_out_token + head * p.stride_out_head;
    for_each_vector(p.head_dim, [&](int64_t i, int n) { store_n(out + i, load(acc + i), n); });
    if (p.lse != nullptr) p.lse[token * p.stride_lse_token + head] = lse;
  }
}

}  // namespace

void merge_states(const MergeStatesParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() { run<T>(p, team); });
}

}  // namespace lampo::cpu::LAMPO_ISA
