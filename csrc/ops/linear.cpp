// SPDX-License-Identifier: Apache-2.0
#include "ops.h"
#include "ops/backend.h"

namespace lampo {
namespace {

/// Alignment of a packed weight on CUDA, which reads it by up to 8 bytes.
constexpr uintptr_t kPackedAlignment = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Checks the common arguments of dense and packed linears; returns Params with them. Without
/// experts (num_experts 0) num_rows, the rows of out, are those of x.
LinearParams check_linear(const TensorView& x, int64_t num_rows, int64_t num_experts,
                          int64_t out_features, OptionalTensor bias, const LinearOptions& options,
                          const TensorView& out, OptionalTensor workspace) {
  check_shape("x", x, {kAny, kAny});
  const bool on_cpu = x.device.type == DeviceType::kCPU;
  if (on_cpu) {
    check_dtype("x", x, {DType::kF32, DType::kBF16});
  } else {
    check_dtype("x", x, {DType::kF32, DType::kBF16, DType::kF16});
  }
  check_inner_contiguous("x", x);
  if (bias != nullptr) {
    check_shape("bias", *bias, {(num_experts > 0 ? num_experts : 1) * out_features});
    check_dtype("bias", *bias, {DType::kF32, x.dtype});
    check_contiguous("bias", *bias);
    check_device("bias", *bias, x.device);
  }
  if (options.norm_weight != nullptr) {
    check_shape("norm_weight", *options.norm_weight, {x.shape[1]});
    check_dtype("norm_weight", *options.norm_weight, {DType::kF32, x.dtype});
    check_contiguous("norm_weight", *options.norm_weight);
    check_device("norm_weight", *options.norm_weight, x.device);
    check_range("norm_eps", options.norm_eps, 0.0, 1.0);
    check_that(workspace != nullptr || !on_cpu, "workspace",
               "expected a tensor beside norm_weight, got None");
  }
  if (options.silu_mul) {
    check_that(out_features % (2 * kStripRows) == 0, "weight",
               "silu_mul wants an even number of strips of 16 rows, got " +
                   std::to_string(out_features) + " rows");
  }
  check_shape("out", out, {num_rows, options.silu_mul ? out_features / 2 : out_features});
  check_dtype("out", out, {DType::kF32, x.dtype});
  check_inner_contiguous("out", out);
  check_writable("out", out);
  check_device("out", out, x.device);
  if (workspace != nullptr) {
    const int64_t needed = on_cpu ? linear_workspace_size(num_rows, x.shape[1]) : 0;
    check_shape("workspace", *workspace, {kAny});
    check_dtype("workspace", *workspace, {DType::kU8});
    check_contiguous("workspace", *workspace);
    check_that(workspace->shape[0] >= needed, "workspace",
               "expected at least " + std::to_string(needed) + " bytes, got " +
                   std::to_string(workspace->shape[0]));
    check_device("workspace", *workspace, x.device);
  }
  const OptionalTensor norm = options.norm_weight;
  return {
      .dtype = x.dtype,
      .out_dtype = out.dtype,
      .weight_dtype = DType::kF32,
      .bias_dtype = bias != nullptr ? bias->dtype : DType::kF32,
      .norm_dtype = norm != nullptr ? norm->dtype : DType::kF32,
      .format = {},
      .activation_bits = options.activation_bits,
      .packed = false,
      .silu_mul = options.silu_mul,
      .accumulate = options.accumulate,
      .swiglu_limit = static_cast<float>(options.swiglu_limit),
      .norm_eps = static_cast<float>(options.norm_eps),
      .num_tokens = num_rows,
      .num_x_rows = x.shape[0],
      .in_features = x.shape[1],
      .out_features = out_features,
      .num_experts = num_experts,
      .x = x.data,
      .x_rows = nullptr,
      .expert_offsets = nullptr,
      .norm_weight = norm != nullptr ? norm->data : nullptr,
      .weight = nullptr,
      .bias = bias != nullptr ? bias->data : nullptr,
      .out = out.data,
      .workspace = workspace != nullptr ? workspace->data : nullptr,
      .stride_x_token = x.stride[0],
      .stride_weight_row = 0,
      .stride_weight_expert = 0,
      .stride_out_token = out.stride[0],
  };
}

/// Checks a dense weight of `rows` rows and enters it into params.
void set_dense(LinearParams& params, const TensorView& x, const TensorView& weight, int64_t rows,
               const LinearOptions& options, OptionalTensor workspace) {
  check_shape("weight", weight, {rows, x.shape[1]});
  check_dtype("weight", weight, {DType::kF32, DType::kBF16, DType::kF16});
  check_inner_contiguous("weight", weight);
  check_device("weight", weight, x.device);
  const int bits = options.activation_bits;
  check_that(bits == 8 || bits == 16, "activation_bits",
             "expected 8 or 16, got " + std::to_string(bits));
  check_that(workspace != nullptr || weight.dtype != DType::kBF16 || x.dtype == DType::kBF16 ||
                 x.device.type != DeviceType::kCPU,
             "workspace", "expected a tensor beside a bfloat16 weight and float32 x, got None");
  params.weight_dtype = weight.dtype;
  params.weight = weight.data;
  params.stride_weight_row = weight.stride[0];
}

/// Checks a packed weight of `rows` rows and enters it into params.
void set_packed(LinearParams& params, const TensorView& x, const TensorView& weight,
                WeightFormat format, int64_t rows, const LinearOptions& options) {
  check_packed("x", format, x.shape[1]);
  check_shape("weight", weight,
              {ceil_div(rows, kStripRows), packed_strip_bytes(format, x.shape[1])});
  check_dtype("weight", weight, {DType::kU8});
  check_contiguous("weight", weight);
  check_device("weight", weight, x.device);
  const int bits = options.activation_bits;
  check_that(bits == 8 || bits == 9 || bits == 16, "activation_bits",
             "expected 8, 9 or 16, got " + std::to_string(bits));
  check_that(x.device.type == DeviceType::kCPU ||
                 reinterpret_cast<uintptr_t>(weight.data) % kPackedAlignment == 0,
             "weight", "expected data aligned to 16 bytes on CUDA");
  params.packed = true;
  params.format = format;
  params.weight = weight.data;
}

}  // namespace

void check_packed(const char* name, WeightFormat format, int64_t in_features) {
  const StripLayout layout = strip_layout(format, 0);
  check_that(in_features > 0 && in_features % layout.block_size == 0, name,
             "expected a positive multiple of " + std::to_string(layout.block_size) +
                 " columns beside a weight in " + name_of(format) + ", got " +
                 std::to_string(in_features));
}

WeightFormat parse_weight_format(const std::string& name) {
  WeightFormat found{};
  std::string before, last;  // "a, b" and "c" for the formats a, b and c
  const bool known = find_format(WeightFormats{}, [&]<class Format>(WeightFormat value) {
    found = value;
    if (!last.empty()) before += (before.empty() ? "" : ", ") + last;
    last = Format::kName;
    return name == last;
  });
  check_that(known, "format", "expected " + before + " or " + last + ", got '" + name + "'");
  return found;
}

std::vector<std::string> weight_formats() {
  std::vector<std::string> names;
  find_format(WeightFormats{}, [&]<class Format>(WeightFormat) {
    names.emplace_back(Format::kName);
    return false;
  });
  return names;
}

int64_t packed_block_bytes(WeightFormat format) { return strip_layout(format, 0).block_bytes; }

int64_t packed_block_size(WeightFormat format) { return strip_layout(format, 0).block_size; }

int64_t packed_strip_bytes(WeightFormat format, int64_t in_features) {
  check_packed("in_features", format, in_features);
  return strip_layout(format, in_features).strip_bytes;
}

int64_t linear_workspace_size(int64_t num_tokens, int64_t in_features) {
  // A row takes its normed values in float32, or as two bfloat16, or as integers of 16 bits with
  // scales and two sums.
  return num_tokens * ceil_div(in_features, kGroupSize) * kGroupSize * 4;
}

void linear(const TensorView& x, const TensorView& weight, OptionalTensor bias,
            const LinearOptions& options, const TensorView& out, OptionalTensor workspace,
            Stream stream) {
  check_shape("weight", weight, {kAny, kAny});
  LinearParams params =
      check_linear(x, x.shape[0], 0, weight.shape[0], bias, options, out, workspace);
  set_dense(params, x, weight, kAny, options, workspace);
  on_device(x.device, stream, params, cpu::linear, cuda::linear);
}

void quantize_weight(const TensorView& weight, WeightFormat format, const TensorView& blocks) {
  check_shape("weight", weight, {kAny, kAny});
  check_dtype("weight", weight, {DType::kF32, DType::kBF16, DType::kF16});
  check_inner_contiguous("weight", weight);
  check_device("weight", weight, Device{});
  const int64_t rows = weight.shape[0], in_features = weight.shape[1];
  check_packed("weight", format, in_features);
  bool known = false;
  std::string names;
  find_format(WeightFormats{}, [&]<class Format>(WeightFormat value) {
    if constexpr (CanWrite<Format>) {
      known = known || value == format;
      names += std::string(names.empty() ? "" : ", ") + Format::kName;
    }
    return false;
  });
  check_that(known, "format",
             "expected one of " + names + " to quantize to, got " + name_of(format));
  const StripLayout layout = strip_layout(format, in_features);
  check_shape("blocks", blocks, {rows, in_features / layout.block_size * layout.block_bytes});
  check_dtype("blocks", blocks, {DType::kU8});
  check_inner_contiguous("blocks", blocks);
  check_writable("blocks", blocks);
  check_device("blocks", blocks, Device{});
  cpu::quantize_weight({
      .format = format,
      .weight_dtype = weight.dtype,
      .rows = rows,
      .in_features = in_features,
      .weight = weight.data,
      .blocks = blocks.data,
      .stride_weight_row = weight.stride[0],
      .stride_blocks_row = blocks.stride[0],
  });
}

void pack_weight(const TensorView& blocks, WeightFormat format, const TensorView& out) {
  check_shape("blocks", blocks, {kAny, kAny});
  check_dtype("blocks", blocks, {DType::kU8});
  check_inner_contiguous("blocks", blocks);
  check_device("blocks", blocks, Device{});
  const int64_t block_bytes = packed_block_bytes(format);
  check_that(blocks.shape[1] > 0 && blocks.shape[1] % block_bytes == 0, "blocks",
             "expected rows of whole blocks of " + std::to_string(block_bytes) + " bytes, got " +
                 shape_string(blocks));
  const int64_t in_features = blocks.shape[1] / block_bytes * packed_block_size(format);
  check_shape("out", out,
              {ceil_div(blocks.shape[0], kStripRows), packed_strip_bytes(format, in_features)});
  check_dtype("out", out, {DType::kU8});
  check_inner_contiguous("out", out);
  check_device("out", out, Device{});
  cpu::pack_weight({
      .format = format,
      .rows = blocks.shape[0],
      .in_features = in_features,
      .blocks = blocks.data,
      .out = out.data,
      .stride_blocks_row = blocks.stride[0],
      .stride_out_strip = out.stride[0],
  });
}

void linear_packed(const TensorView& x, const TensorView& weight, WeightFormat format,
                   OptionalTensor bias, const LinearOptions& options, const TensorView& out,
                   const TensorView& workspace, Stream stream) {
  check_shape("out", out, {kAny, kAny});
  const int64_t out_features = options.silu_mul ? 2 * out.shape[1] : out.shape[1];
  LinearParams params =
      check_linear(x, x.shape[0], 0, out_features, bias, options, out, &workspace);
  set_packed(params, x, weight, format, out_features, options);
  on_device(x.device, stream, params, cpu::linear, cuda::linear);
}

void expert_linear(const TensorView& x, const TensorView& weight, const WeightFormat* format,
                   OptionalTensor bias, const TensorView& offsets, OptionalTensor x_rows,
                   const LinearOptions& options, const TensorView& out,
                   const TensorView& workspace) {
  check_device("x", x, Device{});
  check_shape("x", x, {kAny, kAny});
  check_shape("out", out, {kAny, kAny});
  check_shape("offsets", offsets, {kAny});
  check_dtype("offsets", offsets, {DType::kI32});
  check_contiguous("offsets", offsets);
  check_device("offsets", offsets, x.device);
  const int64_t num_rows = out.shape[0], num_experts = offsets.shape[0] - 1;
  check_that(num_experts > 0, "offsets",
             "expected num_experts + 1 values, got " + std::to_string(offsets.shape[0]));
  const int64_t out_features = options.silu_mul ? 2 * out.shape[1] : out.shape[1];
  check_that(
      out_features % kStripRows == 0, "out",
      "expected a multiple of 16 rows of weight per expert, got " + std::to_string(out_features));
  if (x_rows != nullptr) {
    check_shape("x_rows", *x_rows, {num_rows});
    check_dtype("x_rows", *x_rows, {DType::kI32});
    check_contiguous("x_rows", *x_rows);
    check_device("x_rows", *x_rows, x.device);
    check_that(x.shape[0] > 0 || num_rows == 0, "x", "expected at least one row, got none");
  } else {
    check_shape("x", x, {num_rows, kAny});
  }
  check_that(!options.accumulate, "accumulate", "expected False with experts");
  check_range("swiglu_limit", options.swiglu_limit, 0.0, 1e6);
  check_that(options.swiglu_limit == 0.0 || options.silu_mul, "swiglu_limit",
             "expected 0 without silu_mul");
  LinearParams params =
      check_linear(x, num_rows, num_experts, out_features, bias, options, out, &workspace);
  if (format == nullptr) {
    set_dense(params, x, weight, num_experts * out_features, options, &workspace);
    params.stride_weight_expert = out_features * weight.stride[0] * size_of(weight.dtype);
  } else {
    set_packed(params, x, weight, *format, num_experts * out_features, options);
    params.stride_weight_expert =
        out_features / kStripRows * packed_strip_bytes(*format, x.shape[1]);
  }
  params.expert_offsets = offsets.ptr<const int32_t>();
  params.x_rows = x_rows != nullptr ? x_rows->ptr<const int32_t>() : nullptr;
  cpu::linear(params);
}

}  // namespace lampo
