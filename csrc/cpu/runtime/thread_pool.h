// SPDX-License-Identifier: Apache-2.0
// The worker threads of the CPU backend: one process-wide pool, started at first use, in which the
// calling thread is rank 0. Workers spin for a short while after a job, since the next op of a
// model usually follows within microseconds, and then park in the kernel (a futex).
#pragma once

#include "cpu/runtime/team.h"

namespace lampo::cpu {

using TeamFunction = void (*)(const void* context, const Team& team);

/// Runs fn(context, team) on the threads of the pool and returns when all are done. The team is
/// smaller while other processes keep threads from running (team_size.h). Callers from several
/// threads take turns.
void run_team(TeamFunction fn, const void* context);

template <class Fn>
void run_team(const Fn& fn) {
  run_team([](const void* context, const Team& team) { (*static_cast<const Fn*>(context))(team); },
           &fn);
}

/// Threads used by CPU ops: LAMPO_NUM_THREADS, else the physical cores this process may use.
int num_threads();
/// 1 <= count <= 1024; waits for a running op, then restarts the workers.
void set_num_threads(int count);

}  // namespace lampo::cpu
