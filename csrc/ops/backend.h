// SPDX-License-Identifier: Apache-2.0
// How an op reaches its backend.
#pragma once

#include "common/check.h"
#include "cpu/backend.h"
#include "cpu/runtime/program.h"
#include "cuda/backend.h"
