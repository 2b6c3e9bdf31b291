// SPDX-License-Identifier: Apache-2.0
#include "ops/host_copy.h"

#include <cstdlib>
#include <string_view>

#include "cuda/backend.h"

namespace lampo {

HostCopy::HostCopy(const char* op, const TensorView& t, Stream stream) : view_(t) {
  const char* wanted = std::getenv("LAMPO_CHECK_VALUES");
  if (wanted == nullptr || std::string_view(wanted) != "1") return;
  int64_t elements = t.numel() > 0 ? 1 : 0;
  for (int i = 0; i < t.ndim && elements > 0; ++i) elements += (t.shape[i] - 1) * t.stride[i];
  memory_.resize(static_cast<size_t>(elements * size_of(t.dtype)));
  view_.data = memory_.data();
  view_.device = {};
  made_ = cuda::read_back(op, t.data, memory_.data(), memory_.size(), t.device.index, stream);
}

}  // namespace lampo
