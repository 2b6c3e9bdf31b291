// SPDX-License-Identifier: Apache-2.0
#include "calls/call.h"

const Calls kRecurrentCalls = {
    {"sigmoid_mul", [](const Call& c) { lampo::sigmoid_mul(c["x"], c["gate"], c["out"]); }},
    {"causal_conv",
     [](const Call& c) {
       lampo::causal_conv(c["x"], c["weight"], c.optional("bias"), c["state"], c["state_slots"],
                          c["seq_lens"], c["cu_seqlens_q"], c.optional("gate_in"),
                          c.optional("gate_out"), c.integer("silu") != 0, c["out"]);
     }},
    {"gated_delta",
     [](const Call& c) {
       lampo::gated_delta(c["q"], c["k"], c["v"], c["a"], c["b"], c["decay"], c["dt_bias"],
                          c["state"], c["state_slots"], c["seq_lens"], c["cu_seqlens_q"],
                          c.integer("tiled") != 0, c.number("scale"), c.optional("gate"),
                          c.optional("norm_weight"), c.number("eps"), c["out"]);
     }},
};
