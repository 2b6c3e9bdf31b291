// SPDX-License-Identifier: Apache-2.0
#include "calls/call.h"

const Calls kSamplingCalls = {};
