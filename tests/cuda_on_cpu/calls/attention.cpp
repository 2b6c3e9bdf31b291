// SPDX-License-Identifier: Apache-2.0
#include "calls/call.h"

const Calls kAttentionCalls = {
    {"merge_states",
     [](const Call& c) {
       lampo::merge_states(c["out_partial"], c["lse_partial"], c["out"], c.optional("lse"));
     }},
};
