// SPDX-License-Identifier: Apache-2.0
// Blocks of a grid that share a result: the last of them to finish its part completes it.
#pragma once

namespace lampo::cuda {

/// Adds `part` to a counter that begins at 0; true for the call that makes it `total`. One thread
/// calls it, behind a barrier that follows the block's stores. After the next barrier the last
/// block sees the stores of all others. The counter is 0 again then, for the next launch.
__device__ inline bool arrives_last(unsigned* counter, unsigned part, unsigned total) {
  __threadfence();
  const bool last = atomicAdd(counter, part) + part == total;
  __threadfence();
  if (last) *counter = 0;
  return last;
}

}  // namespace lampo::cuda
