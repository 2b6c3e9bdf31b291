// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "ops/backend.h"

namespace lampo {
namespace {

constexpr int64_t kMaxTopK = 64;

/// Checks values per token and chosen expert.
void check_pairs(const char* name, const TensorView& t, int64_t num_tokens, int64_t top_k,
                 DType dtype) {
  check_shape(name, t, {num_tokens, top_k});
  check_dtype(name, t, {dtype});
  check_contiguous(name, t);
  check_device(name, t, Device{});
}

}  // namespace

void route_tokens(const TensorView& logits, bool normalized, const Routing& to) {
  check_shape("logits", logits, {kAny, kAny});
  check_dtype("logits", logits, {DType::kF32});
  check_device("logits", logits, Device{});
  check_inner_contiguous("logits", logits);
  const int64_t num_tokens = logits.shape[0], num_experts = logits.shape[1];
  check_shape("experts", to.experts, {num_tokens, kAny});
  const int64_t top_k = to.experts.shape[1];
  check_that(top_k >= 1 && top_k <= kMaxTopK && top_k <= num_experts, "top_k",
             "expected 1 to 64, and no more than the " + std::to_string(num_experts) +
                 " experts, got " + std::to_string(top_k));
  check_that(num_tokens * top_k < int64_t{1} << 31, "logits",
             "expected fewer than 2^31 pairs of a token and an expert");
  check_pairs("experts", to.experts, num_tokens, top_k, DType::kI32);
  check_pairs("weights", to.weights, num_tokens, top_k, DType::kF32);
  check_pairs("rows", to.rows, num_tokens, top_k, DType::kI32);
  check_shape("x_rows", to.x_rows, {num_tokens * top_k});
  check_shape("offsets", to.offsets, {num_experts + 1});
  for (const auto& [name, t] : {std::pair{"x_rows", &to.x_rows}, {"offsets", &to.offsets}}) {
    check_dtype(name, *t, {DType::kI32});
    check_contiguous(name, *t);
    check_device(name, *t, Device{});
  }
  const RouteParams params{
      .num_tokens = num_tokens,
      .num_experts = num_experts,
      .top_k = top_k,
      .normalized = normalized,
      .logits = logits.ptr<const float>(),
      .experts = to.experts.ptr<int32_t>(),
      .weights = to.weights.ptr<float>(),
      .rows = to.rows.ptr<int32_t>(),
      .x_rows = to.x_rows.ptr<int32_t>(),
      .offsets = to.offsets.ptr<int32_t>(),
      .stride_logits_token = logits.stride[0],
  };
  cpu::route_tokens(params);
}

void combine_experts(const TensorView& y, const TensorView& rows, const TensorView& weights,
                     bool accumulate, const TensorView& out) {
  check_shape("out", out, {kAny, kAny});
  check_dtype("out", out, {DType::kF32, DType::kBF16});
  check_device("out", out, Device{});
  check_inner_contiguous("out", out);
  check_writable("out", out);
  const int64_t num_tokens = out.shape[0], size = out.shape[1];
  check_shape("y", y, {kAny, size});
  check_dtype("y", y, {DType::kF32, out.dtype});
  check_inner_contiguous("y", y);
  check_device("y", y, Device{});
  check_shape("rows", rows, {num_tokens, kAny});
  const int64_t top_k = rows.shape[1];
  check_pairs("rows", rows, num_tokens, top_k, DType::kI32);
  check_pairs("weights", weights, num_tokens, top_k, DType::kF32);
  check_that(y.shape[0] > 0 || num_tokens * top_k == 0, "y", "expected at least one row, got none");
  const CombineParams params{
      .dtype = out.dtype,
      .y_dtype = y.dtype,
      .accumulate = accumulate,
      .num_tokens = num_tokens,
      .top_k = top_k,
      .size = size,
      .num_rows = y.shape[0],
      .y = y.data,
      .rows = rows.ptr<const int32_t>(),
      .weights = weights.ptr<const float>(),
      .out = out.data,
      .stride_y_row = y.stride[0],
      .stride_out_token = out.stride[0],
  };
  cpu::combine_experts(params);
}

}  // namespace lampo
