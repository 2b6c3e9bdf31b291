// SPDX-License-Identifier: Apache-2.0
// Instruction sets and cores that this process may use.
#pragma once

#include <string>
#include <vector>

namespace lampo::cpu {

/// Physical cores in this process's affinity mask, at most its cgroup's CPU quota; at least 1.
int usable_cores();

/// Names of the compiled kernel tables this CPU can run, slowest first: "baseline", "avx2",
/// "avx512".
std::vector<std::string> runnable_isas();
/// All compiled kernel tables, runnable here or not.
std::vector<std::string> compiled_isas();

}  // namespace lampo::cpu
