// SPDX-License-Identifier: Apache-2.0
// Rows to threads: as long as there is a row for every thread each takes rows of its own; what is
// left over (all of them, when there are fewer rows than threads) is done by the whole team, row by
// row.
#pragma once

#include "cpu/runtime/team.h"
#include "cpu/sampling/sample_workspace.h"

namespace lampo::cpu::LAMPO_ISA {

/// Calls fn(row, whether row + 1 is next, team of that row, its slot).
template <class Fn>
static inline void for_each_row(int64_t num_rows, int64_t vocab, void* workspace, const Team& team,
                                Fn&& fn) {
  const int64_t left = num_rows % team.size;
  const Share own = share_of(num_rows - left, team);
  const SampleSlot slot = slot_at(workspace, vocab, team.size, team.rank);
  for (int64_t row = own.begin; row < own.end; ++row) fn(row, row + 1 < own.end, Team{}, slot);
  if (left == 0) return;
  const SampleSlot common = slot_at(workspace, vocab, team.size, 0);
  for (int64_t row = num_rows - left; row < num_rows; ++row) {
    team.sync();  // the slot is free
    fn(row, row + 1 < num_rows, team, common);
  }
}

}  // namespace lampo::cpu::LAMPO_ISA
