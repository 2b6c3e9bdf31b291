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

void scale(const TensorView& x, const TensorView& out, double factor, double soft_cap,
           Stream stream) {
  check_range("factor", factor, -1e30, 1e30);
  check_range("soft_cap", soft_cap, 0.0, 1e30);
  const bool capped = soft_cap != 0.0;
  ActivationParams params =
      check_activation("x", x, out, capped ? Activation::kSoftCap : Activation::kScale, false);
  params.factor = static_cast<float>(capped ? factor / soft_cap : factor);
  params.soft_cap = static_cast<float>(soft_cap);
  on_device(x.device, stream, params, cpu::activation, cuda::activation);
}

void scale_by_position(const TensorView& x, const TensorView& positions, const TensorView& out,
                       double beta, int64_t length, Stream stream) {
  check_range("beta", beta, 0.0, 1e3);
  check_that(length >= 1, "length", "expected 1 or more, got " + std::to_string(length));
  ActivationParams params = check_activation("x", x, out, Activation::kGrow, false);
  check_shape("positions", positions, {x.shape[0]});
  check_dtype("positions", positions, {DType::kI64});
  check_contiguous("positions", positions);
  check_device("positions", positions, x.device);
  params.factor = static_cast<float>(beta);
  params.positions = positions.ptr<const int64_t>();
  params.length = length;
  on_device(x.device, stream, params, cpu::activation, cuda::activation);
}

}  // namespace lampo
