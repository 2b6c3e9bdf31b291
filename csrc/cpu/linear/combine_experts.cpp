// SPDX-License-Identifier: Apache-2.0
// out[t] += sum over i of weights[t, i] y[rows[t, i]]: the results of a token's experts, in the
// order of their ranks, so that a token's sum does not depend on its batch.
//
// Work: threads share tokens times blocks of columns. Bound by the bytes of y.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/linear/experts.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

/// Columns of a piece of work: a single token occupies several threads too.
constexpr int64_t kBlock = 512;

template <class Y, class Out>
void run(const CombineParams& p, const Team& team) {
  const Y* y = static_cast<const Y*>(p.y);
  const int64_t blocks = (p.size + kBlock - 1) / kBlock;
  const Share share = share_of(p.num_tokens * blocks, team);
  for (int64_t piece = share.begin; piece < share.end; ++piece) {
    const int64_t token = piece / blocks, first = piece % blocks * kBlock;
    const int64_t size = p.size - first < kBlock ? p.size - first : kBlock;
    const int32_t* rows = p.rows + token * p.top_k;
    const float* weights = p.weights + token * p.top_k;
    Out* out = static_cast<Out*>(p.out) + token * p.stride_out_token + first;
    for_each_vector(size, [&](int64_t i, int n) {
      F32 sum;
      for (int64_t rank = 0; rank < p.top_k; ++rank) {
        const int64_t row = clamp_index(rows[rank], 0, p.num_rows - 1);
        sum = fma(F32(weights[rank]), load_n(y + row * p.stride_y_row + first + i, n), sum);
      }
      if (p.accumulate) sum = sum + load_n(out + i, n);
      store_n(out + i, sum, n);
    });
  }
}

}  // namespace

void combine_experts(const CombineParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.y_dtype, [&]<class Y>() {
    dispatch_dtype<float, BF16>(p.dtype, [&]<class Out>() { run<Y, Out>(p, team); });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
