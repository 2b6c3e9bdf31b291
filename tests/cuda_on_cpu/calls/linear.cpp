// SPDX-License-Identifier: Apache-2.0
#include "calls/call.h"

namespace {

lampo::LinearOptions options(const Call& c) {
  return {.norm_weight = c.optional("norm_weight"),
          .norm_eps = 1e-5,
          .silu_mul = c.integer("silu_mul") != 0,
          .accumulate = c.integer("accumulate") != 0,
          .activation_bits = c.integer("activation_bits")};
}

}  // namespace

const Calls kLinearCalls = {
    {"linear",
     [](const Call& c) {
       lampo::linear(c["x"], c["weight"], c.optional("bias"), options(c), c["out"], nullptr);
     }},
    {"linear_packed",
     [](const Call& c) {
       lampo::linear_packed(c["x"], c["weight"],
                            static_cast<lampo::WeightFormat>(c.integer("format")),
                            c.optional("bias"), options(c), c["out"], c["workspace"]);
     }},
};
