// SPDX-License-Identifier: Apache-2.0
// What a kernel is given: raw pointers, shapes and strides (in elements), checked by csrc/ops/.
// Both backends take the same structs. Strides are stride_<tensor>_<dimension>; a pointer that may
// be null says so. dtype is the type of the activations.
#pragma once

#include "common/tensor_view.h"

namespace lampo {

struct RmsNormParams {
  DType dtype;         // of x, residual and out
  DType weight_dtype;  // float32 or dtype
  int64_t num_tokens;
  int64_t hidden_size;
  float eps;
  const void* x;       // [num_tokens, hidden_size]
  const void* weight;  // [hidden_size]
  void* residual;      // [num_tokens, hidden_size], in and out; null: none
  void* out;           // [num_tokens, hidden_size]
  int64_t stride_x_token;
  int64_t stride_residual_token;
  int64_t stride_out_token;
};

struct LayerNormParams {
  DType dtype;
  DType weight_dtype;  // of weight and bias
  int64_t num_tokens;
  int64_t hidden_size;
  float eps;
  const void* x;       // [num_tokens, hidden_size]
  const void* weight;  // [hidden_size]
  const void* bias;    // [hidden_size]; null: none
  void* residual;      // [num_tokens, hidden_size], in and out; null: none
  void* out;           // [num_tokens, hidden_size]
  int64_t stride_x_token;
  int64_t stride_residual_token;
  int64_t stride_out_token;
};

enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh };

/// out = act(gate) * up, or act(x) where `gated` is false.
struct ActivationParams {
  DType dtype;
  Activation activation;
  bool gated;
  int64_t num_tokens;
  int64_t size;   // of a row of out
  const void* x;  // [num_tokens, 2 * size], gate first; not gated: [num_tokens, size]
  void* out;      // [num_tokens, size]
  int64_t stride_x_token;
  int64_t stride_out_token;
};

}  // namespace lampo
