// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "ops/backend.h"

namespace lampo {
namespace {

void check_norm(const TensorView& x, const TensorView& weight, OptionalTensor bias,
                OptionalTensor residual, const TensorView& out, double eps) {
  check_shape("x", x, {kAny, kAny});
  check_dtype("x", x, {DType::kF32, DType::kBF16});
  check_inner_contiguous("x", x);
  const int64_t num_tokens = x.shape[0];
  const int64_t hidden_size = x.shape[1];
  check_that(hidden_size > 0, "x", "expected hidden_size >= 1, got shape " + shape_string(x));

  check_shape("weight", weight, {hidden_size});
  check_dtype("weight", weight, {DType::kF32, x.dtype});
  check_contiguous("weight", weight);
  check_device("weight", weight, x.device);
  if (bias != nullptr) {
    check_shape("bias", *bias, {hidden_size});
    check_dtype("bias", *bias, {weight.dtype});
    check_contiguous("bias", *bias);
    check_device("bias", *bias, x.device);
  }
  if (residual != nullptr) {
    check_shape("residual", *residual, {num_tokens, hidden_size});
    check_dtype("residual", *residual, {x.dtype});
    check_inner_contiguous("residual", *residual);
    check_writable("residual", *residual);
    check_device("residual", *residual, x.device);
  }
  check_shape("out", out, {num_tokens, hidden_size});
  check_dtype("out", out, {x.dtype});
  check_inner_contiguous("out", out);
  check_writable("out", out);
  check_device("out", out, x.device);
  check_range("eps", eps, 0.0, 1.0);
}

}  // namespace

void rms_norm(const TensorView& x, const TensorView& weight, OptionalTensor residual,
              const TensorView& out, double eps, Stream stream) {
  check_norm(x, weight, nullptr, residual, out, eps);
  const RmsNormParams params{
      .dtype = x.dtype,
      .weight_dtype = weight.dtype,
      .num_tokens = x.shape[0],
      .hidden_size = x.shape[1],
      .eps = static_cast<float>(eps),
      .x = x.data,
      .weight = weight.data,
      .residual = residual != nullptr ? residual->data : nullptr,
      .out = out.data,
      .stride_x_token = x.stride[0],
      .stride_residual_token = residual != nullptr ? residual->stride[0] : 0,
      .stride_out_token = out.stride[0],
  };
  on_device(x.device, stream, params, cpu::rms_norm, cuda::rms_norm);
}

void layer_norm(const TensorView& x, const TensorView& weight, OptionalTensor bias,
                OptionalTensor residual, const TensorView& out, double eps, Stream stream) {
  check_norm(x, weight, bias, residual, out, eps);
  const LayerNormParams params{
      .dtype = x.dtype,
      .weight_dtype = weight.dtype,
      .num_tokens = x.shape[0],
      .hidden_size = x.shape[1],
      .eps = static_cast<float>(eps),
      .x = x.data,
      .weight = weight.data,
      .bias = bias != nullptr ? bias->data : nullptr,
      .residual = residual != nullptr ? residual->data : nullptr,
      .out = out.data,
      .stride_x_token = x.stride[0],
      .stride_residual_token = residual != nullptr ? residual->stride[0] : 0,
      .stride_out_token = out.stride[0],
  };
  on_device(x.device, stream, params, cpu::layer_norm, cuda::layer_norm);
}

}  // namespace lampo
