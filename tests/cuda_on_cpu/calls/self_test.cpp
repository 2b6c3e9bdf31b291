// SPDX-License-Identifier: Apache-2.0
#include "kernels/self_test.h"

#include "calls/call.h"

namespace self_test = lampo::cuda::self_test;

const Calls kSelfTestCalls = {
    {"reverse",
     [](const Call& c) {
       self_test::reverse(c["x"].ptr<float>(), c["out"].ptr<float>(),
                          static_cast<int>(c["x"].shape[0]), c.integer("fault"));
     }},
    {"gather_pages",
     [](const Call& c) {
       self_test::gather_pages(c["cache"].ptr<float>(), c["pages"].ptr<int>(),
                               c["out"].ptr<float>(), static_cast<int>(c["out"].shape[0]),
                               static_cast<int>(c["cache"].shape[1]));
     }},
    {"stage_sum",
     [](const Call& c) {
       self_test::stage_sum(c["x"].ptr<float>(), c["out"].ptr<float>(),
                            static_cast<int>(c["x"].shape[0]), static_cast<int>(c["x"].shape[1]),
                            c.integer("fault"));
     }},
    {"multiply",
     [](const Call& c) {
       self_test::multiply(c["a"].dtype, c["a"].data, c["b"].data, c["out"].data,
                           c.integer("by_ldmatrix") != 0, c.integer("fault"));
     }},
    {"load_twice",
     [](const Call& c) { self_test::load_twice(c["x"].data, c["out"].ptr<uint32_t>()); }},
    {"warp_functions",
     [](const Call& c) {
       self_test::warp_functions(c["x"].ptr<int>(), c["out"].ptr<int>(), c.integer("fault"));
     }},
    {"cluster_sum",
     [](const Call& c) {
       self_test::cluster_sum(c["x"].ptr<float>(), c["out"].ptr<float>(),
                              static_cast<int>(c["x"].shape[0]), c.integer("cluster"),
                              c.integer("fault"));
     }},
    {"histogram",
     [](const Call& c) {
       self_test::histogram(c["x"].ptr<int>(), c["counts"].ptr<int>(), c["arrived"].ptr<int>(),
                            static_cast<int>(c["x"].shape[0]),
                            static_cast<int>(c["counts"].shape[0]) - 1, c.integer("fault"));
     }},
    {"begin_early",
     [](const Call& c) {
       self_test::begin_early(c["x"].ptr<float>(), c["out"].ptr<float>(),
                              static_cast<int>(c["x"].shape[0]), c.integer("fault"));
     }},
    {"bad_launch", [](const Call& c) { self_test::bad_launch(c.integer("fault")); }},
};
