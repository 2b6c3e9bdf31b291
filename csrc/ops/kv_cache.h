// SPDX-License-Identifier: Apache-2.0
// What every op on the paged cache asks of it.
#pragma once

#include "common/check.h"

namespace lampo {

/// k_cache and v_cache alike, with a supported type, page_size and head_dim, and the scales that
/// the type needs or may have.
void check_kv_cache(const TensorView& k_cache, const TensorView& v_cache, OptionalTensor k_scale,
                    OptionalTensor v_scale, bool written, Device device);

}  // namespace lampo
