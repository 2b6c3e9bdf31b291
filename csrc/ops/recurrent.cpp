// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ops.h"
#include "ops/backend.h"
#include "ops/host_copy.h"

namespace lampo {
namespace {

/// Checks the values of the index tensors, on the host.
void check_batch(const StateBatch& b) {
  check_that(b.cu_seqlens_q[0] == 0, "cu_seqlens_q",
             "expected 0 first, got " + std::to_string(b.cu_seqlens_q[0]));
  std::vector<bool> used(static_cast<size_t>(b.num_slots));
  for (int64_t seq = 0; seq < b.batch_size; ++seq) {
    const std::string name = "sequence " + std::to_string(seq) + ": ";
    const int64_t begin = b.cu_seqlens_q[seq], end = b.cu_seqlens_q[seq + 1];
    check_that(begin <= end && end <= b.num_tokens, "cu_seqlens_q",
               name + "expected ascending values of at most " + std::to_string(b.num_tokens) +
                   " tokens, got " + std::to_string(begin) + " and " + std::to_string(end));
    if (begin == end) continue;
    check_that(b.seq_lens[seq] >= end - begin, "seq_lens",
               name + "expected at least its " + std::to_string(end - begin) + " new tokens, got " +
                   std::to_string(b.seq_lens[seq]));
    const int64_t slot = b.state_slots[seq];
    check_that(slot >= 0 && slot < b.num_slots, "state_slots",
               name + "expected a slot in [0, " + std::to_string(b.num_slots) + "), got " +
                   std::to_string(slot));
    check_that(!used[static_cast<size_t>(slot)], "state_slots",
               name + "slot " + std::to_string(slot) + " is another sequence's too");
    used[static_cast<size_t>(slot)] = true;
  }
}

/// Checks the sequences of an op, and their state: `name` [num_slots, ...] float32.
StateBatch check_sequences(const char* op, const char* name, const TensorView& state,
                           int64_t num_tokens, const TensorView& state_slots,
                           const TensorView& seq_lens, const TensorView& cu_seqlens_q,
                           Device device, Stream stream) {
  check_dtype(name, state, {DType::kF32});
  int64_t inner = 1;
  for (int dim = state.ndim - 1; dim > 0; --dim) {
    check_that(state.shape[dim] == 1 || state.stride[dim] == inner, name,
               "expected contiguous states, got shape " + shape_string(state));
    inner *= state.shape[dim];
  }
  check_writable(name, state);
  check_device(name, state, device);
  check_shape("state_slots", state_slots, {kAny});
  check_dtype("state_slots", state_slots, {DType::kI64});
  check_contiguous("state_slots", state_slots);
  check_device("state_slots", state_slots, device);
  const int64_t batch_size = state_slots.shape[0];
  check_shape("seq_lens", seq_lens, {batch_size});
  check_shape("cu_seqlens_q", cu_seqlens_q, {batch_size + 1});
  for (const auto& [lengths, tensor] :
       {std::pair("seq_lens", &seq_lens), std::pair("cu_seqlens_q", &cu_seqlens_q)}) {
    check_dtype(lengths, *tensor, {DType::kI32});
    check_contiguous(lengths, *tensor);
    check_device(lengths, *tensor, device);
  }
  const StateBatch batch{
      .batch_size = batch_size,
      .num_tokens = num_tokens,
      .num_slots = state.shape[0],
      .state_slots = state_slots.ptr<const int64_t>(),
      .seq_lens = seq_lens.ptr<const int32_t>(),
      .cu_seqlens_q = cu_seqlens_q.ptr<const int32_t>(),
  };
  if (device.type == DeviceType::kCPU) {
    cpu::check_values(batch.state_slots, batch.num_slots, [=] { check_batch(batch); });
  } else if (const HostCopy slots(op, state_slots, stream); slots) {
    const HostCopy lens(op, seq_lens, stream);
    const HostCopy cu(op, cu_seqlens_q, stream);
    StateBatch copied = batch;
    copied.state_slots = slots.view().ptr<const int64_t>();
    copied.seq_lens = lens.view().ptr<const int32_t>();
    copied.cu_seqlens_q = cu.view().ptr<const int32_t>();
    check_batch(copied);
  }
  return batch;
}

void check_input(const char* name, const TensorView& t, std::initializer_list<int64_t> shape,
                 const TensorView& like) {
  check_shape(name, t, shape);
  check_dtype(name, t, {like.dtype});
  check_inner_contiguous(name, t);
  check_device(name, t, like.device);
}

void check_parameter(const char* name, const TensorView& t, std::initializer_list<int64_t> shape,
                     Device device) {
  check_shape(name, t, shape);
  check_dtype(name, t, {DType::kF32});
  check_contiguous(name, t);
  check_device(name, t, device);
}

void check_dim(const char* name, const char* what, int64_t dim) {
  check_that(dim >= 1 && dim <= kMaxGatedDeltaDim, name,
             "expected a " + std::string(what) + " of 1 to " + std::to_string(kMaxGatedDeltaDim) +
                 ", got " + std::to_string(dim));
}

}  // namespace

void sigmoid_mul(const TensorView& x, const TensorView& gate, const TensorView& out,
                 Stream stream) {
  check_shape("x", x, {kAny, kAny, kAny});
  check_dtype("x", x, {DType::kF32, DType::kBF16});
  check_inner_contiguous("x", x);
  const int64_t num_tokens = x.shape[0], num_heads = x.shape[1], head_dim = x.shape[2];
  check_input("gate", gate, {num_tokens, num_heads, head_dim}, x);
  check_input("out", out, {num_tokens, num_heads, head_dim}, x);
  check_writable("out", out);
  const SigmoidMulParams params{
      .dtype = x.dtype,
      .num_tokens = num_tokens,
      .num_heads = num_heads,
      .head_dim = head_dim,
      .x = x.data,
      .gate = gate.data,
      .out = out.data,
      .stride_x_token = x.stride[0],
      .stride_x_head = x.stride[1],
      .stride_gate_token = gate.stride[0],
      .stride_gate_head = gate.stride[1],
      .stride_out_token = out.stride[0],
      .stride_out_head = out.stride[1],
  };
  on_device(x.device, stream, params, cpu::sigmoid_mul, cuda::sigmoid_mul);
}

void causal_conv(const TensorView& x, const TensorView& weight, OptionalTensor bias,
                 const TensorView& state, const TensorView& state_slots, const TensorView& seq_lens,
                 const TensorView& cu_seqlens_q, OptionalTensor gate_in, OptionalTensor gate_out,
                 bool silu, const TensorView& out, Stream stream) {
  check_shape("x", x, {kAny, kAny});
  check_dtype("x", x, {DType::kF32, DType::kBF16});
  check_inner_contiguous("x", x);
  const int64_t num_tokens = x.shape[0], num_channels = x.shape[1];
  check_that(num_channels >= 1, "x", "expected one channel or more, got shape " + shape_string(x));
  check_parameter("weight", weight, {kAny, num_channels}, x.device);
  const int64_t width = weight.shape[0];
  check_that(width >= 2 && width <= 4, "weight",
             "expected 2, 3 or 4 taps per channel, got " + std::to_string(width));
  if (bias != nullptr) check_parameter("bias", *bias, {num_channels}, x.device);
  check_shape("state", state, {kAny, width - 1, num_channels});
  if (gate_in != nullptr) check_input("gate_in", *gate_in, {num_tokens, num_channels}, x);
  if (gate_out != nullptr) check_input("gate_out", *gate_out, {num_tokens, num_channels}, x);
  check_input("out", out, {num_tokens, num_channels}, x);
  check_writable("out", out);
  const CausalConvParams params{
      .dtype = x.dtype,
      .silu = silu,
      .width = width,
      .num_channels = num_channels,
      .batch = check_sequences("causal_conv", "state", state, num_tokens, state_slots, seq_lens,
                               cu_seqlens_q, x.device, stream),
      .x = x.data,
      .gate_in = gate_in != nullptr ? gate_in->data : nullptr,
      .gate_out = gate_out != nullptr ? gate_out->data : nullptr,
      .weight = weight.ptr<const float>(),
      .bias = bias != nullptr ? bias->ptr<const float>() : nullptr,
      .state = state.ptr<float>(),
      .out = out.data,
      .stride_x_token = x.stride[0],
      .stride_gate_in_token = gate_in != nullptr ? gate_in->stride[0] : 0,
      .stride_gate_out_token = gate_out != nullptr ? gate_out->stride[0] : 0,
      .stride_out_token = out.stride[0],
      .stride_state_slot = state.stride[0],
  };
  on_device(x.device, stream, params, cpu::causal_conv, cuda::causal_conv);
}

void gated_delta(const TensorView& q, const TensorView& k, const TensorView& v, const TensorView& a,
                 const TensorView& b, const TensorView& decay, const TensorView& dt_bias,
                 const TensorView& state, const TensorView& state_slots, const TensorView& seq_lens,
                 const TensorView& cu_seqlens_q, bool tiled, double scale, OptionalTensor gate,
                 OptionalTensor norm_weight, double eps, const TensorView& out, Stream stream) {
  check_shape("v", v, {kAny, kAny, kAny});
  check_dtype("v", v, {DType::kF32, DType::kBF16});
  check_inner_contiguous("v", v);
  const int64_t num_tokens = v.shape[0], num_value_heads = v.shape[1], value_dim = v.shape[2];
  check_dim("v", "value_dim", value_dim);
  check_input("q", q, {num_tokens, kAny, kAny}, v);
  const int64_t num_key_heads = q.shape[1], key_dim = q.shape[2];
  check_dim("q", "key_dim", key_dim);
  check_that(num_key_heads >= 1 && num_value_heads >= 1 && num_value_heads % num_key_heads == 0,
             "q",
             "expected a divisor of " + std::to_string(num_value_heads) +
                 " heads (those of v), got shape " + shape_string(q));
  check_input("k", k, {num_tokens, num_key_heads, key_dim}, v);
  check_input("a", a, {num_tokens, num_value_heads}, v);
  check_input("b", b, {num_tokens, num_value_heads}, v);
  check_parameter("decay", decay, {num_value_heads}, v.device);
  check_parameter("dt_bias", dt_bias, {num_value_heads}, v.device);
  check_shape("state", state, {kAny, num_value_heads, key_dim, value_dim});
  check_range("scale", scale, -1e30, 1e30);
  check_range("eps", eps, 0.0, 1.0);
  check_that((gate == nullptr) == (norm_weight == nullptr), "norm_weight",
             "expected with a gate, and only with one");
  if (gate != nullptr) {
    check_input("gate", *gate, {num_tokens, num_value_heads, value_dim}, v);
    check_parameter("norm_weight", *norm_weight, {value_dim}, v.device);
  }
  check_input("out", out, {num_tokens, num_value_heads, value_dim}, v);
  check_writable("out", out);
  const GatedDeltaParams params{
      .dtype = v.dtype,
      .tiled = tiled,
      .num_key_heads = num_key_heads,
      .num_value_heads = num_value_heads,
      .key_dim = key_dim,
      .value_dim = value_dim,
      .scale = static_cast<float>(scale),
      .eps = static_cast<float>(eps),
      .batch = check_sequences("gated_delta", "state", state, num_tokens, state_slots, seq_lens,
                               cu_seqlens_q, v.device, stream),
      .q = q.data,
      .k = k.data,
      .v = v.data,
      .a = a.data,
      .b = b.data,
      .gate = gate != nullptr ? gate->data : nullptr,
      .decay = decay.ptr<const float>(),
      .dt_bias = dt_bias.ptr<const float>(),
      .norm_weight = norm_weight != nullptr ? norm_weight->ptr<const float>() : nullptr,
      .state = state.ptr<float>(),
      .out = out.data,
      .stride_q_token = q.stride[0],
      .stride_q_head = q.stride[1],
      .stride_k_token = k.stride[0],
      .stride_k_head = k.stride[1],
      .stride_v_token = v.stride[0],
      .stride_v_head = v.stride[1],
      .stride_a_token = a.stride[0],
      .stride_b_token = b.stride[0],
      .stride_gate_token = gate != nullptr ? gate->stride[0] : 0,
      .stride_gate_head = gate != nullptr ? gate->stride[1] : 0,
      .stride_out_token = out.stride[0],
      .stride_out_head = out.stride[1],
      .stride_state_slot = state.stride[0],
  };
  on_device(v.device, stream, params, cpu::gated_delta, cuda::gated_delta);
}

}  // namespace lampo
