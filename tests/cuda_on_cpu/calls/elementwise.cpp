// SPDX-License-Identifier: Apache-2.0
#include "calls/call.h"

const Calls kElementwiseCalls = {
    {"rms_norm",
     [](const Call& c) {
       lampo::rms_norm(c["x"], c["weight"], c.optional("residual"), c["out"], c.number("eps"));
     }},
    {"layer_norm",
     [](const Call& c) {
       lampo::layer_norm(c["x"], c["weight"], c.optional("bias"), c.optional("residual"), c["out"],
                         c.number("eps"));
     }},
    {"silu_mul", [](const Call& c) { lampo::silu_mul(c["x"], c["out"]); }},
    {"gelu_mul", [](const Call& c) { lampo::gelu_mul(c["x"], c["out"], c.integer("tanh") != 0); }},
    {"gelu", [](const Call& c) { lampo::gelu(c["x"], c["out"], c.integer("tanh") != 0); }},
    {"scale",
     [](const Call& c) {
       lampo::scale(c["x"], c["out"], c.number("factor"), c.number("soft_cap"));
     }},
    {"scale_by_position",
     [](const Call& c) {
       lampo::scale_by_position(c["x"], c["positions"], c["out"], c.number("beta"),
                                c.integer("length"));
     }},
    {"embedding",
     [](const Call& c) {
       lampo::embedding(c["token_ids"], c["table"], c["out"], c.integer("accumulate") != 0);
     }},
    {"embedding_packed",
     [](const Call& c) {
       lampo::embedding_packed(c["token_ids"], c["table"],
                               static_cast<lampo::WeightFormat>(c.integer("format")),
                               c.integer("vocab_size"), c["out"], c.integer("accumulate") != 0);
     }},
    {"append_kv",
     [](const Call& c) {
       lampo::append_kv(c.optional("q"), c["k"], c["v"], c["k_cache"], c["v_cache"],
                        c["slot_mapping"], c.optional("positions"), c.optional("cos_sin"),
                        c.integer("interleaved") != 0, c.integer("hadamard") != 0,
                        c.optional("q_norm_weight"), c.optional("k_norm_weight"), c.number("eps"),
                        c.optional("k_scale"), c.optional("v_scale"));
     }},
};
