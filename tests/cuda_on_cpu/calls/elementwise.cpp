// SPDX-License-Identifier: Apache-2.0
#include "calls/call.h"

const Calls kElementwiseCalls = {
    {"rms_norm",
     [](const Call& c) {
       lampo::rms_norm(c["x"], c["weight"], c.optional("residual"), c["out"], c.number("eps"));
     }},
    {"silu_mul", [](const Call& c) { lampo::silu_mul(c["x"], c["out"]); }},
};
