// SPDX-License-Identifier: Apache-2.0
// Launches of translated kernels in place of the ones that g++ compiled.
#pragma once

#include <string>
#include <vector>

#include "simt/executor.h"

namespace ptx {

/// From now on, kernels of a list run from PTX. Its lines: the demangled name of a kernel (in an
/// anonymous namespace: after its file and ": "), its object file, the PTX file and the line of its
/// head there, with tabs in between. The first line is "all" if the launch of any other kernel is an
/// error, "some" if those run as g++ compiled them.
void run_from_ptx(const std::string& list);

/// Runs the kernel of one object file.
void run_object(const std::string& object, const simt::Grid& grid,
                const std::vector<simt::Argument>& arguments);

}  // namespace ptx
