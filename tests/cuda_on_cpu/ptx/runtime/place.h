// SPDX-License-Identifier: Apache-2.0
// The kernel that runs, and how its faults are reported.
#pragma once

#include <string>

#include "ptx/runtime/kernel.h"

namespace ptx {

struct Running {
  const Kernel* kernel = nullptr;
  std::string file;    // of its PTX
  int first_line = 0;  // of its head
  unsigned char* parameters = nullptr;
};
extern Running running;

/// Ends the grid: the thread, the kernel's file and line, and `what`.
[[noreturn]] void fail(int line, const std::string& what);

/// Forgets what the grid before has read and written.
void begin_grid();

}  // namespace ptx
