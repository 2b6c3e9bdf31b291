// SPDX-License-Identifier: Apache-2.0
// What the host has asked of the CUDA runtime, for tests of the host's side.
#pragma once

#include <set>
#include <utility>
#include <vector>

namespace simt {

struct Calls {
  std::set<int> contexts;                       // devices that were made current
  std::vector<int> shared_limits;               // values of cudaFuncSetAttribute, in order
  std::vector<std::pair<int, void*>> launches;  // device and stream of each
};

/// All since the process began, or since a test cleared them. Launches are of one thread at a time.
Calls& host_calls();

}  // namespace simt
