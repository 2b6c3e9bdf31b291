// SPDX-License-Identifier: Apache-2.0
// A launch of one translated kernel: small ones of tests of the translator.
#include <string>
#include <vector>

#include "calls/call.h"
#include "ptx/runtime/launch.h"
#include "simt/executor.h"

/// Tensor "object" is the path of an object file; the others are passed as pointers, then "count".
const Calls kPtxCalls = {
    {"run_object",
     [](const Call& c) {
       std::vector<void*> pointers;
       for (const std::string& name : c.order) {
         if (name != "object") pointers.push_back(c[name.c_str()].data);
       }
       std::vector<simt::Argument> arguments;
       for (void*& pointer : pointers) arguments.push_back({&pointer, sizeof(pointer)});
       const int count = c.integer("count");
       if (count >= 0) arguments.push_back({&count, sizeof(count)});
       simt::Grid grid;
       grid.grid = {static_cast<unsigned>(c.integer("blocks"))};
       grid.block = {static_cast<unsigned>(c.integer("threads"))};
       grid.cluster = static_cast<unsigned>(c.integer("cluster"));
       grid.shared_bytes = static_cast<size_t>(c.integer("shared_bytes"));
       const auto& path = c["object"];
       ptx::run_object(std::string(path.ptr<const char>(), path.shape[0]), grid, arguments);
     }},
};
