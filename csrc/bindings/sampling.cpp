// SPDX-License-Identifier: Apache-2.0
#include "common/sampling.h"

#include <cstring>

#include "bindings/bind.h"
#include "common/check.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {
namespace {

const TensorView* check_words(const char* name, const TensorView& t, DType dtype, int64_t size) {
  check_shape(name, t, {size});
  check_dtype(name, t, {dtype});
  check_contiguous(name, t);
  return &t;
}

}  // namespace

void bind_sampling(py::module_& m) {
  m.def("sample", [](py::handle logits, py::handle temperature, py::handle top_k, py::handle top_p,
                     py::handle min_p, py::handle seeds, py::handle positions,
                     py::handle penalty_ids, py::handle penalty_counts, py::handle cu_penalties,
                     py::handle repetition_penalty, py::handle presence_penalty,
                     py::handle frequency_penalty, py::handle bias_ids, py::handle bias_values,
                     py::handle cu_bias, py::handle allowed_mask, py::handle token_ids,
                     py::handle status, py::handle logprobs, py::handle kept, py::handle num_kept,
                     py::handle processed_logprobs, py::handle workspace) {
    const TensorArg logits_("logits", logits), temperature_("temperature", temperature);
    const OptionalArg top_k_("top_k", top_k), top_p_("top_p", top_p), min_p_("min_p", min_p),
        seeds_("seeds", seeds), positions_("positions", positions),
        penalty_ids_("penalty_ids", penalty_ids), penalty_counts_("penalty_counts", penalty_counts),
        cu_penalties_("cu_penalties", cu_penalties),
        repetition_penalty_("repetition_penalty", repetition_penalty),
        presence_penalty_("presence_penalty", presence_penalty),
        frequency_penalty_("frequency_penalty", frequency_penalty), bias_ids_("bias_ids", bias_ids),
        bias_values_("bias_values", bias_values), cu_bias_("cu_bias", cu_bias),
        allowed_mask_("allowed_mask", allowed_mask);
    const OutArg token_ids_("token_ids", token_ids), status_("status", status),
        workspace_("workspace", workspace);
    const OptionalOutArg logprobs_("logprobs", logprobs), kept_("kept", kept),
        num_kept_("num_kept", num_kept),
        processed_logprobs_("processed_logprobs", processed_logprobs);
    const Stream stream = logits_.stream();
    without_gil([&] {
      sample({.logits = logits_,
              .temperature = temperature_,
              .top_k = top_k_,
              .top_p = top_p_,
              .min_p = min_p_,
              .seeds = seeds_,
              .positions = positions_,
              .penalty_ids = penalty_ids_,
              .penalty_counts = penalty_counts_,
              .cu_penalties = cu_penalties_,
              .repetition_penalty = repetition_penalty_,
              .presence_penalty = presence_penalty_,
              .frequency_penalty = frequency_penalty_,
              .bias_ids = bias_ids_,
              .bias_values = bias_values_,
              .cu_bias = cu_bias_,
              .allowed_mask = allowed_mask_,
              .token_ids = token_ids_,
              .status = status_,
              .logprobs = logprobs_,
              .kept = kept_,
              .num_kept = num_kept_,
              .processed_logprobs = processed_logprobs_,
              .workspace = workspace_},
             stream);
    });
  });

  m.def("token_logprobs", [](py::handle logits, py::handle token_ids, py::handle logprob,
                             py::handle rank, py::handle top_ids, py::handle top_logprobs,
                             py::handle workspace) {
    const TensorArg logits_("logits", logits), token_ids_("token_ids", token_ids);
    const OutArg logprob_("logprob", logprob), rank_("rank", rank), top_ids_("top_ids", top_ids),
        top_logprobs_("top_logprobs", top_logprobs), workspace_("workspace", workspace);
    const Stream stream = logits_.stream();
    without_gil([&] {
      token_logprobs(logits_, token_ids_, logprob_, rank_, top_ids_, top_logprobs_, workspace_,
                     stream);
    });
  });

  m.def(
      "sampling_workspace_size",
      [](int64_t vocab_size, int cuda_device, int64_t batch_size) {
        return sampling_workspace_size(
            vocab_size, cuda_device < 0 ? Device{} : Device{DeviceType::kCUDA, cuda_device},
            batch_size);
      },
      py::arg("vocab_size"), py::arg("cuda_device") = -1, py::arg("batch_size") = 1);

  // The functions of common/ that decide a draw, for tests to measure.
  m.def("philox4x32_10", [](py::handle counter_and_key, py::handle out) {
    const TensorArg in("counter_and_key", counter_and_key);
    const OutArg out_("out", out);
    const auto* words = check_words("counter_and_key", in, DType::kI32, 6)->ptr<uint32_t>();
    const PhiloxCounter random =
        philox4x32_10({{words[0], words[1], words[2], words[3]}}, {{words[4], words[5]}});
    memcpy(check_words("out", out_, DType::kI32, 4)->data, random.word, sizeof(random.word));
  });
  m.def("exp2_times_2_40", [](py::handle x, py::handle out) {
    const TensorArg x_("x", x);
    const OutArg out_("out", out);
    const int64_t size = check_words("x", x_, DType::kF32, kAny)->shape[0];
    float* y = check_words("out", out_, DType::kF32, size)->ptr<float>();
    for (int64_t i = 0; i < size; ++i) y[i] = exp2_times_2_40((*x_).ptr<float>()[i]);
  });
  m.def("exponential_variate", [](py::handle random, py::handle out) {
    const TensorArg random_("random", random);
    const OutArg out_("out", out);
    const int64_t size = check_words("random", random_, DType::kI32, kAny)->shape[0];
    float* y = check_words("out", out_, DType::kF32, size)->ptr<float>();
    for (int64_t i = 0; i < size; ++i) y[i] = exponential_variate((*random_).ptr<uint32_t>()[i]);
  });
}

}  // namespace lampo
