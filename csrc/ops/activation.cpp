// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "ops/backend.h"

namespace lampo {
namespace {

ActivationParams check_activation(const char* input, const TensorView& x, const TensorView& out,
                                  Activation activation, bool gated) {
  check_shape(input, x, {kAny, kAny});
  check_dtype(input, x, {DType::kF32, DType::kBF16});
  check_inner_contiguous(input, x);
  if (gated) {
    check_that(x.shape[1] % 2 == 0, input,
               "expected an even last dimension (gate and up), got shape " + shape_string(x));
  }
  const int64_t size = gated ? x.shape[1] / 2 : x.shape[1];
  check_shape("out", out, {x.shape[0], size});
  check_dtype("out", out, {x.dtype});
  check_inner_contiguous("out", out);
  check_writable("out", out);
  check_device("out", out, x.device);
  return {
      .dtype = x.dtype,
      .activation = activation,
      .gated = gated,
      .num_tokens = x.shape[0],
      .size = size,
      .x = x.data,
      .out = out.data,
      .stride_x_token = x.stride[0],
      .stride_out_token = out.stride[0],
  };
}

}  // namespace

void silu_mul(const TensorView& gate_up, const TensorView& out, Stream stream) {
  const ActivationParams params =
      check_activation("gate_up", gate_up, out, Activation::kSilu, true);
  on_device(gate_up.device, stream, params, cpu::activation, cuda::activation);
}

void gelu_mul(const TensorView& gate_up, const TensorView& out, bool tanh_approximation,
              Stream stream) {
  const ActivationParams params =
      check_activation("gate_up", gate_up, out,
                       tanh_approximation ? Activation::kGeluTanh : Activation::kGelu, true);
  on_device(gate_up.device, stream, params, cpu::activation, cuda::activation);
}

void gelu(const TensorView& x, const TensorView& out, bool tanh_approximation, Stream stream) {
  const ActivationParams params = check_activation(
      "x", x, out, tanh_approximation ? Activation::kGeluTanh : Activation::kGelu, false);
  on_device(x.device, stream, params, cpu::activation, cuda::activation);
}

}  // namespace lampo
