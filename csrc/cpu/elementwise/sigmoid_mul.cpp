// SPDX-License-Identifier: Apache-2.0
// out = x * sigmoid(gate), per head: an output gate of attention.
//
// Bytes: 3 values of dtype per output. FLOPs: about 20 per output, in f32; memory-bound from L2 on.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/math.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

template <class T>
void run(const SigmoidMulParams& p, const Team& team) {
  const Share share = share_of(p.num_tokens * p.num_heads, team);
  for (int64_t at = share.begin; at < share.end; ++at) {
    const int64_t token = at / p.num_heads, head = at % p.num_heads;
    const T* x = static_cast<const T*>(p.x) + token * p.stride_x_token + head * p.stride_x_head;
    const T* gate =
        static_cast<const T*>(p.gate) + token * p.stride_gate_token + head * p.stride_gate_head;
    T* out = static_cast<T*>(p.out) + token * p.stride_out_token + head * p.stride_out_head;
    for_each_vector(p.head_dim, [&](int64_t i, int n) {
      store_n(out + i, load_n(x + i, n) * sigmoid(load_n(gate + i, n)), n);
    });
  }
}

}  // namespace

void sigmoid_mul(const SigmoidMulParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() { run<T>(p, team); });
}

}  // namespace lampo::cpu::LAMPO_ISA
