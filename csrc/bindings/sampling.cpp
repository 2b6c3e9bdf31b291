// SPDX-License-Identifier: Apache-2.0
#include "common/sampling.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings/bind.h"
#include "common/check.h"
#include "ops.h"

namespace py = pybind11;

namespace lampo {
namespace {

/// Applies a function of common/ to every element, so that tests can measure it.
template <class In, class Out, class Fn>
void map_tensor(const TensorView& in, const TensorView& out, DType in_type, DType out_type,
                Fn&& fn) {
  check_shape("x", in, {kAny});
  check_shape("out", out, {in.shape[0]});
  check_dtype("x", in, {in_type});
  check_dtype("out", out, {out_type});
  check_contiguous("x", in);
  check_contiguous("out", out);
  for (int64_t i = 0; i < in.shape[0]; ++i) out.ptr<Out>()[i] = fn(in.ptr<const In>()[i]);
}

}  // namespace

void bind_sampling(py::module_& m) {
  m.def("sample", [](py::handle logits, py::handle temperature, py::handle top_k, py::handle top_p,
                     py::handle min_p, py::handle seeds, py::handle positions,
                     py::handle penalty_ids, py::handle penalty_counts, py::handle cu_penalties,
                     py::handle repetition_penalty, py::handle presence_penalty,
                     py::handle frequency_penalty, py::handle bias_ids, py::handle bias_values,
                     py::handle cu_bias, py::handle allowed_mask, py::handle token_ids,
                     py::handle status, py::handle logprobs, py::handle kept,
                     py::handle workspace) {
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
    const OptionalOutArg logprobs_("logprobs", logprobs), kept_("kept", kept);
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
      [](int64_t vocab_size, int cuda_device) {
        return sampling_workspace_size(
            vocab_size, cuda_device < 0 ? Device{} : Device{DeviceType::kCUDA, cuda_device});
      },
      py::arg("vocab_size"), py::arg("cuda_device") = -1);

  m.def(
      "philox4x32_10",
      [](std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
        const PhiloxCounter words =
            philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, {{key[0], key[1]}});
        return std::array<uint32_t, 4>{words.word[0], words.word[1], words.word[2], words.word[3]};
      },
      py::arg("counter"), py::arg("key"));
  m.def(
      "exp2_times_2_40",
      [](py::handle x, py::handle out) {
        const TensorArg x_("x", x);
        const OutArg out_("out", out);
        map_tensor<float, float>(x_, out_, DType::kF32, DType::kF32,
                                 [](float y) { return exp2_times_2_40(y); });
      },
      py::arg("x"), py::arg("out"));
  m.def(
      "exponential_variate",
      [](py::handle x, py::handle out) {
        const TensorArg x_("x", x);
        const OutArg out_("out", out);
        map_tensor<int32_t, float>(x_, out_, DType::kI32, DType::kF32, [](int32_t random) {
          return exponential_variate(static_cast<uint32_t>(random));
        });
      },
      py::arg("x"), py::arg("out"));
}

}  // namespace lampo
