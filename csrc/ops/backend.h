// SPDX-License-Identifier: Apache-2.0
// How an op reaches its backend.
#pragma once

#include "common/check.h"
#include "cpu/backend.h"
#include "cpu/program.h"
#if LAMPO_WITH_CUDA
#include "cuda/backend.h"
#endif

namespace lampo {

/// Why a CUDA op cannot run: not compiled in, or compiled but not written yet.
[[noreturn]] void throw_no_cuda_kernel(const char* op);

}  // namespace lampo
