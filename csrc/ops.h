// SPDX-License-Identifier: Apache-2.0
// The public C++ API: one function per op. Each checks its arguments (ArgumentError or TypeMismatch
// name the culprit), picks the backend by device, and enqueues the work: on the caller's stream on
// CUDA, and before returning on CPU. No op allocates or synchronises. The Python docstrings in
// python/lampo/ops/ give formulas and sources.
#pragma once

#include <string>
#include <vector>

#include "common/tensor_view.h"

namespace lampo {

void rms_norm(const TensorView& x,       // [num_tokens, hidden_size] float32 or bfloat16
              const TensorView& weight,  // [hidden_size] float32 or as x
              OptionalTensor residual,   // [num_tokens, hidden_size] as x; += x, then normed
              const TensorView& out,     // [num_tokens, hidden_size] as x
              double eps, Stream stream = {});

void layer_norm(const TensorView& x, const TensorView& weight,
                OptionalTensor bias,  // [hidden_size] as weight
                OptionalTensor residual, const TensorView& out, double eps, Stream stream = {});

void silu_mul(const TensorView& gate_up,  // [num_tokens, 2 * size], gate first
              const TensorView& out,      // [num_tokens, size]
              Stream stream = {});
void gelu_mul(const TensorView& gate_up, const TensorView& out, bool tanh_approximation,
              Stream stream = {});
void gelu(const TensorView& x, const TensorView& out, bool tanh_approximation, Stream stream = {});

/// The kernel table of the CPU ops: its name, and those that could be chosen. `isa` as in
/// LAMPO_CPU_ISA; throws BackendError if this CPU cannot run it.
std::string cpu_isa();
void set_cpu_isa(const std::string& isa);

}  // namespace lampo
