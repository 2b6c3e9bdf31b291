// SPDX-License-Identifier: Apache-2.0
// Instruction sets and cores that this process may use.
#pragma once

#include <string>
#include <vector>

namespace lampo::cpu {

/// CPUs that the cgroups of this process may use, of version 1 or 2, the smallest quota of all that
/// contain it; 0 without a limit. root: the folder with /proc and /sys.
double cgroup_cpus(const std::string& root = "");

/// Physical cores in this process's affinity mask, at most its cgroups' CPU quota, rounded up; at
/// least 1.
int usable_cores();

/// Names of the compiled kernel tables this CPU can run, slowest first: "baseline", "avx2",
/// "avx512".
std::vector<std::string> runnable_isas();
/// All compiled kernel tables, runnable here or not.
std::vector<std::string> compiled_isas();

}  // namespace lampo::cpu
