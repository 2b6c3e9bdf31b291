// SPDX-License-Identifier: Apache-2.0
// Copies of values on a GPU, for checks in debugging.
#pragma once

#include <vector>

#include "common/tensor_view.h"

namespace lampo {

/// The values of a tensor on a GPU, copied to the host if the environment variable
/// LAMPO_CHECK_VALUES is 1; the copy waits for the stream. Otherwise, and while the stream is
/// captured (waiting is then not allowed), there is no copy.
class HostCopy {
 public:
  HostCopy(const char* op, const TensorView& t, Stream stream);
  HostCopy(const HostCopy&) = delete;
  HostCopy& operator=(const HostCopy&) = delete;

  explicit operator bool() const { return made_; }
  /// The tensor, its data on the host.
  const TensorView& view() const { return view_; }

 private:
  std::vector<char> memory_;
  TensorView view_;
  bool made_ = false;
};

}  // namespace lampo
