// SPDX-License-Identifier: Apache-2.0
// A look at values that lie on a GPU, for debugging.
#pragma once

#include <vector>

#include "common/tensor_view.h"

namespace lampo {

/// The values of a tensor on a GPU, copied to the host if the environment variable
/// LAMPO_CHECK_VALUES is 1: that waits for the stream. Else, and while the stream is captured,
/// where nobody may wait, there is none.
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
