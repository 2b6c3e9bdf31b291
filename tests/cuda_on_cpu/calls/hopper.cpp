// SPDX-License-Identifier: Apache-2.0
#include "kernels/hopper.h"

#include <stdexcept>

#include "calls/call.h"

namespace {

/// Tensors in their order, numbers in that of their names.
void run(const Call& c, int (*function)(void* const*, const int*)) {
  std::vector<void*> tensors;
  for (const std::string& name : c.order) tensors.push_back(c[name.c_str()].data);
  std::vector<int> numbers;
  for (const auto& [name, value] : c.numbers) numbers.push_back(static_cast<int>(value));
  const int error = function(tensors.data(), numbers.data());
  if (error != 0) throw std::runtime_error("refused, error " + std::to_string(error));
}

}  // namespace

const Calls kHopperCalls = {
    {"hopper_box", [](const Call& c) { run(c, hopper_box); }},
    {"hopper_multiply_shared", [](const Call& c) { run(c, hopper_multiply_shared); }},
    {"hopper_multiply_registers", [](const Call& c) { run(c, hopper_multiply_registers); }},
    {"hopper_pipeline", [](const Call& c) { run(c, hopper_pipeline); }},
};
