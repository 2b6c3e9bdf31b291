// SPDX-License-Identifier: Apache-2.0
// A CPU kernel's view of its threads. All threads of a team call a kernel at once; each takes its
// share of the work, and a barrier may synchronise them. So the same threads run a list of kernels
// without returning to the caller in between.
#pragma once

#include <cstdint>

namespace lampo::cpu {

struct TeamBarrier;

struct Team {
  int rank = 0;
  int size = 1;
  TeamBarrier* barrier = nullptr;  // null in a team of one
  void sync() const;
};

/// Half-open share of [0, count) for one rank, in multiples of `grain` (the last may be cut).
struct Share {
  int64_t begin, end;
};

static inline Share share_of(int64_t count, const Team& team, int64_t grain = 1) {
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t begin = grains * team.rank / team.size * grain;
  const int64_t end = grains * (team.rank + 1) / team.size * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace lampo::cpu
