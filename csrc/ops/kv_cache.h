// SPDX-License-Identifier: Apache-2.0
// Checks of the paged cache, for all its ops.
#pragma once

#include "common/check.h"

namespace lampo {

/// Checks that k_cache and v_cache are alike, with a supported type, page_size and head_dim, and
/// with the scales that the type needs or may have.
void check_kv_cache(const TensorView& k_cache, const TensorView& v_cache, OptionalTensor k_scale,
                    OptionalTensor v_scale, bool written, Device device);

}  // namespace lampo
