// SPDX-License-Identifier: Apache-2.0
// One call of an op of csrc/ops.h, or of a kernel of kernels/: its arguments by name.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ops.h"

struct Tensor {
  std::unique_ptr<char, decltype(&free)> memory{nullptr, &free};
  size_t bytes = 0;
  lampo::TensorView view;
};

struct Call {
  std::map<std::string, double> numbers;
  std::map<std::string, Tensor> tensors;
  std::vector<std::string> order;  // of the tensors

  double number(const char* name) const { return numbers.at(name); }
  int integer(const char* name) const { return static_cast<int>(numbers.at(name)); }
  const lampo::TensorView& operator[](const char* name) const { return tensors.at(name).view; }
  const lampo::TensorView* optional(const char* name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second.view;
  }
};

using Calls = std::map<std::string, void (*)(const Call&)>;

// A file of calls/ each.
extern const Calls kElementwiseCalls;
extern const Calls kRecurrentCalls;
extern const Calls kAttentionCalls;
extern const Calls kSamplingCalls;
extern const Calls kLinearCalls;
extern const Calls kSelfTestCalls;
extern const Calls kHopperCalls;
extern const Calls kPtxCalls;  // of the plain program alone
