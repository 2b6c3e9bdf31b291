// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "ops.h"
#include "ops/backend.h"
#include "ops/host_copy.h"

namespace lampo {
namespace {

void check_id_values(const TensorView& token_ids, int64_t vocab_size) {
  for (int64_t i = 0; i < token_ids.shape[0]; ++i) {
    const int64_t id =
        token_ids.dtype == DType::kI64 ? token_ids.ptr<int64_t>()[i] : token_ids.ptr<int32_t>()[i];
    check_that(id >= 0 && id < vocab_size, "token_ids",
               "expected ids in [0, " + std::to_string(vocab_size) + "), got " +
                   std::to_string(id) + " at " + std::to_string(i));
  }
}

void check_ids(const TensorView& token_ids, int64_t vocab_size, Stream stream) {
  check_shape("token_ids", token_ids, {kAny});
  check_dtype("token_ids", token_ids, {DType::kI32, DType::kI64});
  check_contiguous("token_ids", token_ids);
  if (token_ids.device.type == DeviceType::kCPU) {
    cpu::check_values(token_ids.data, vocab_size, [=] { check_id_values(token_ids, vocab_size); });
  } else if (const HostCopy ids("embedding", token_ids, stream); ids) {
    check_id_values(ids.view(), vocab_size);
  }
}

void check_out(const TensorView& token_ids, const TensorView& table, const TensorView& out,
               int64_t hidden_size) {
  check_shape("out", out, {token_ids.shape[0], hidden_size});
  check_dtype("out", out, {DType::kF32, DType::kBF16});
  check_inner_contiguous("out", out);
  check_writable("out", out);
  check_device("token_ids", token_ids, out.device);
  check_device("table", table, out.device);
}

EmbeddingParams fill(const TensorView& token_ids, const TensorView& table, int64_t vocab_size,
                     const TensorView& out, bool accumulate) {
  return {
      .dtype = out.dtype,
      .id_dtype = token_ids.dtype,
      .table_dtype = table.dtype,
      .packed = false,
      .accumulate = accumulate,
      .format = {},
      .num_tokens = out.shape[0],
      .hidden_size = out.shape[1],
      .vocab_size = vocab_size,
      .token_ids = token_ids.data,
      .table = table.data,
      .out = out.data,
      .stride_table_row = table.stride[0],
      .stride_out_token = out.stride[0],
  };
}

}  // namespace

void embedding(const TensorView& token_ids, const TensorView& table, const TensorView& out,
               bool accumulate, Stream stream) {
  check_shape("table", table, {kAny, kAny});
  check_dtype("table", table, {DType::kF32, DType::kBF16, DType::kF16});
  check_inner_contiguous("table", table);
  check_ids(token_ids, table.shape[0], stream);
  check_out(token_ids, table, out, table.shape[1]);
  const EmbeddingParams params = fill(token_ids, table, table.shape[0], out, accumulate);
  on_device(out.device, stream, params, cpu::embedding, cuda::embedding);
}

void embedding_packed(const TensorView& token_ids, const TensorView& table, WeightFormat format,
                      int64_t vocab_size, const TensorView& out, bool accumulate, Stream stream) {
  check_ids(token_ids, vocab_size, stream);
  check_shape("out", out, {kAny, kAny});
  check_out(token_ids, table, out, out.shape[1]);
  check_packed("out", format, out.shape[1]);
  check_shape(
      "table", table,
      {(vocab_size + kStripRows - 1) / kStripRows, packed_strip_bytes(format, out.shape[1])});
  check_dtype("table", table, {DType::kU8});
  check_contiguous("table", table);
  EmbeddingParams params = fill(token_ids, table, vocab_size, out, accumulate);
  params.packed = true;
  params.format = format;
  on_device(out.device, stream, params, cpu::embedding, cuda::embedding);
}

}  // namespace lampo
