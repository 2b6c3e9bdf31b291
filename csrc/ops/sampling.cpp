// SPDX-License-Identifier: Apache-2.0
#include "common/sampling.h"

#include <string>

#include "ops.h"
#include "ops/backend.h"

namespace lampo {
namespace {

void check_logits(const TensorView& logits) {
  check_shape("logits", logits, {kAny, kAny});
  check_dtype("logits", logits, {DType::kF32, DType::kBF16});
  check_inner_contiguous("logits", logits);
  check_that(logits.shape[1] >= 1 && logits.shape[1] <= kMaxSampleVocab, "logits",
             "expected a vocabulary of 1 to 2^23 tokens, got shape " + shape_string(logits));
}

/// A contiguous argument that may be absent; its data or null.
template <class T>
const T* optional_data(const char* name, OptionalTensor t, DType dtype,
                       std::initializer_list<int64_t> shape, Device device) {
  if (t == nullptr) return nullptr;
  check_shape(name, *t, shape);
  check_dtype(name, *t, {dtype});
  check_contiguous(name, *t);
  check_device(name, *t, device);
  return t->ptr<const T>();
}

template <class T>
T* output_data(const char* name, const TensorView& t, DType dtype,
               std::initializer_list<int64_t> shape, Device device) {
  optional_data<T>(name, &t, dtype, shape, device);
  check_writable(name, t);
  return t.ptr<T>();
}

void check_workspace(const TensorView& workspace, int64_t vocab_size, int64_t batch_size,
                     Device device) {
  check_shape("workspace", workspace, {kAny});
  check_dtype("workspace", workspace, {DType::kU8});
  check_contiguous("workspace", workspace);
  check_device("workspace", workspace, device);
  const int64_t needed = sampling_workspace_size(vocab_size, device, batch_size);
  check_that(workspace.shape[0] >= needed, "workspace",
             "expected at least " + std::to_string(needed) + " bytes, got " +
                 std::to_string(workspace.shape[0]));
}

/// On the CPU, where the values can be read: those of every row. `expected` is for the message.
template <class T, class Test>
void check_values(const char* name, const T* values, int64_t count, Device device,
                  const char* expected, Test&& test) {
  if (values == nullptr || device.type != DeviceType::kCPU) return;
  for (int64_t i = 0; i < count; ++i) {
    if (test(values[i])) continue;
    check_that(false, name,
               std::string("expected ") + expected + ", got " + std::to_string(values[i]) +
                   " at index " + std::to_string(i));
  }
}

/// Rows of (id, value) pairs: offsets that fit, ids in the vocabulary.
RaggedIds check_ragged(const char* ids_name, OptionalTensor ids, const char* cu_name,
                       OptionalTensor cu, int64_t batch_size, int64_t vocab_size, Device device) {
  check_that((ids == nullptr) == (cu == nullptr), cu_name,
             std::string("expected together with ") + ids_name + ", or neither");
  if (ids == nullptr) return {};
  const RaggedIds list = {
      optional_data<int32_t>(ids_name, ids, DType::kI32, {kAny}, device),
      optional_data<int32_t>(cu_name, cu, DType::kI32, {batch_size + 1}, device), ids->shape[0]};
  if (device.type != DeviceType::kCPU) return list;
  const int64_t nnz = ids->shape[0];
  check_that(list.cu[0] == 0, cu_name,
             "expected offsets that begin with 0, got " + std::to_string(list.cu[0]));
  for (int64_t b = 0; b < batch_size; ++b) {
    check_that(list.cu[b] <= list.cu[b + 1] && list.cu[b + 1] <= nnz, cu_name,
               "expected offsets that do not fall and end at " + std::to_string(nnz) +
                   " at most, got " + std::to_string(list.cu[b + 1]) + " at index " +
                   std::to_string(b + 1));
  }
  check_values(ids_name, list.ids, list.cu[batch_size], device, "ids of the vocabulary",
               [&](int32_t id) { return id >= 0 && id < vocab_size; });
  return list;
}

constexpr bool is_finite(float x) { return x - x == 0.0f; }

}  // namespace

int64_t sampling_workspace_size(int64_t vocab_size, Device device, int64_t batch_size) {
  check_that(vocab_size >= 1 && vocab_size <= kMaxSampleVocab, "vocab_size",
             "expected 1 to 2^23, got " + std::to_string(vocab_size));
  if (device.type == DeviceType::kCPU) return cpu::sampling_workspace_size(vocab_size);
  check_that(batch_size >= 0, "batch_size",
             "expected a value >= 0, got " + std::to_string(batch_size));
  return cuda::sampling_workspace_size(vocab_size, batch_size);
}

void sample(const SampleArguments& a, Stream stream) {
  check_logits(a.logits);
  const int64_t batch_size = a.logits.shape[0];
  const int64_t vocab_size = a.logits.shape[1];
  const Device device = a.logits.device;
  const auto row_floats = [&](const char* name, OptionalTensor t) {
    return optional_data<float>(name, t, DType::kF32, {batch_size}, device);
  };
  SampleParams p{};
  p.dtype = a.logits.dtype;
  p.batch_size = batch_size;
  p.vocab_size = vocab_size;
  p.logits = a.logits.data;
  p.stride_logits_row = a.logits.stride[0];
  p.temperature = row_floats("temperature", &a.temperature);
  check_values("temperature", p.temperature, batch_size, device, "a finite value >= 0",
               [](float t) { return t >= 0.0f && is_finite(t); });
  p.top_k = optional_data<int32_t>("top_k", a.top_k, DType::kI32, {batch_size}, device);
  check_values("top_k", p.top_k, batch_size, device, "a value >= 0 (0: off)",
               [](int32_t k) { return k >= 0; });
  p.top_p = row_floats("top_p", a.top_p);
  check_values("top_p", p.top_p, batch_size, device, "a value in (0, 1]",
               [](float x) { return x > 0.0f && x <= 1.0f; });
  p.min_p = row_floats("min_p", a.min_p);
  check_values("min_p", p.min_p, batch_size, device, "a value in [0, 1]",
               [](float x) { return x >= 0.0f && x <= 1.0f; });
  p.seeds = optional_data<int64_t>("seeds", a.seeds, DType::kI64, {batch_size}, device);
  if (p.seeds == nullptr) {
    check_that(device.type == DeviceType::kCPU, "seeds", "expected a tensor");
    check_values("seeds", p.temperature, batch_size, device,
                 "a tensor, which may be left out only where temperature is 0",
                 [](float t) { return t == 0.0f; });
  }
  p.positions = optional_data<int64_t>("positions", a.positions, DType::kI64, {batch_size}, device);

  p.penalties = check_ragged("penalty_ids", a.penalty_ids, "cu_penalties", a.cu_penalties,
                             batch_size, vocab_size, device);
  const int64_t num_penalties = a.penalty_ids != nullptr ? a.penalty_ids->shape[0] : 0;
  check_that((a.penalty_ids == nullptr) == (a.penalty_counts == nullptr), "penalty_counts",
             "expected together with penalty_ids, or neither");
  p.penalty_counts = optional_data<int32_t>("penalty_counts", a.penalty_counts, DType::kI32,
                                            {num_penalties}, device);
  p.repetition_penalty = row_floats("repetition_penalty", a.repetition_penalty);
  check_values("repetition_penalty", p.repetition_penalty, batch_size, device, "a finite value > 0",
               [](float x) { return x > 0.0f && is_finite(x); });
  p.presence_penalty = row_floats("presence_penalty", a.presence_penalty);
  check_values("presence_penalty", p.presence_penalty, batch_size, device, "a finite value",
               is_finite);
  p.frequency_penalty = row_floats("frequency_penalty", a.frequency_penalty);
  check_values("frequency_penalty", p.frequency_penalty, batch_size, device, "a finite value",
               is_finite);

  p.bias =
      check_ragged("bias_ids", a.bias_ids, "cu_bias", a.cu_bias, batch_size, vocab_size, device);
  const int64_t num_biases = a.bias_ids != nullptr ? a.bias_ids->shape[0] : 0;
  check_that((a.bias_ids == nullptr) == (a.bias_values == nullptr), "bias_values",
             "expected together with bias_ids, or neither");
  p.bias_values =
      optional_data<float>("bias_values", a.bias_values, DType::kF32, {num_biases}, device);
  if (a.allowed_mask != nullptr) {
    check_shape("allowed_mask", *a.allowed_mask, {batch_size, (vocab_size + 31) / 32});
    check_dtype("allowed_mask", *a.allowed_mask, {DType::kI32});
    check_inner_contiguous("allowed_mask", *a.allowed_mask);
    check_device("allowed_mask", *a.allowed_mask, device);
    p.allowed_mask = a.allowed_mask->ptr<int32_t>();
    p.stride_mask_row = a.allowed_mask->stride[0];
  }

  p.token_ids = output_data<int64_t>("token_ids", a.token_ids, DType::kI64, {batch_size}, device);
  p.status = output_data<int32_t>("status", a.status, DType::kI32, {batch_size}, device);
  if (a.logprobs != nullptr) {
    p.logprobs = output_data<float>("logprobs", *a.logprobs, DType::kF32, {batch_size, 2}, device);
  }
  if (a.kept != nullptr) {
    check_shape("kept", *a.kept, {batch_size, vocab_size});
    check_dtype("kept", *a.kept, {DType::kBool, DType::kU8});
    check_inner_contiguous("kept", *a.kept);
    check_writable("kept", *a.kept);
    check_device("kept", *a.kept, device);
    p.kept = a.kept->ptr<uint8_t>();
    p.stride_kept_row = a.kept->stride[0];
  }
  if (a.num_kept != nullptr) {
    p.num_kept = output_data<int32_t>("num_kept", *a.num_kept, DType::kI32, {batch_size}, device);
  }
  if (a.processed_logprobs != nullptr) {
    const TensorView& processed = *a.processed_logprobs;
    check_shape("processed_logprobs", processed, {batch_size, vocab_size});
    check_dtype("processed_logprobs", processed, {DType::kF32});
    check_inner_contiguous("processed_logprobs", processed);
    check_writable("processed_logprobs", processed);
    check_device("processed_logprobs", processed, device);
    p.processed_logprobs = processed.ptr<float>();
    p.stride_processed_row = processed.stride[0];
  }
  check_workspace(a.workspace, vocab_size, batch_size, device);
  p.workspace = a.workspace.data;
  if (device.type == DeviceType::kCPU) return cpu::sample(p);
  cuda::sample(p, device.index, stream);
}

void token_logprobs(const TensorView& logits, const TensorView& token_ids,
                    const TensorView& logprob, const TensorView& rank, const TensorView& top_ids,
                    const TensorView& top_logprobs, const TensorView& workspace, Stream stream) {
  check_logits(logits);
  const int64_t batch_size = logits.shape[0];
  const int64_t vocab_size = logits.shape[1];
  const Device device = logits.device;
  const auto* ids =
      optional_data<int64_t>("token_ids", &token_ids, DType::kI64, {batch_size}, device);
  check_values("token_ids", ids, batch_size, device, "ids of the vocabulary, or -1",
               [&](int64_t id) { return id >= -1 && id < vocab_size; });
  check_shape("top_ids", top_ids, {batch_size, kAny});
  const int64_t num_top = top_ids.shape[1];
  check_that(num_top <= vocab_size, "top_ids",
             "expected at most vocab_size columns, got shape " + shape_string(top_ids));
  TokenLogprobsParams p{};
  p.dtype = logits.dtype;
  p.batch_size = batch_size;
  p.vocab_size = vocab_size;
  p.num_top = num_top;
  p.logits = logits.data;
  p.stride_logits_row = logits.stride[0];
  p.token_ids = ids;
  p.logprob = output_data<float>("logprob", logprob, DType::kF32, {batch_size}, device);
  p.rank = output_data<int32_t>("rank", rank, DType::kI32, {batch_size}, device);
  p.top_ids = output_data<int32_t>("top_ids", top_ids, DType::kI32, {batch_size, num_top}, device);
  p.top_logprobs =
      output_data<float>("top_logprobs", top_logprobs, DType::kF32, {batch_size, num_top}, device);
  check_workspace(workspace, vocab_size, batch_size, device);
  p.workspace = workspace.data;
  if (device.type == DeviceType::kCPU) return cpu::token_logprobs(p);
  cuda::token_logprobs(p, device.index, stream);
}

}  // namespace lampo
