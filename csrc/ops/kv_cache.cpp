// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_cache.h"

#include <string>

#include "ops.h"
#include "ops/backend.h"
#include "ops/host_copy.h"

namespace lampo {

void check_kv_cache(const TensorView& k_cache, const TensorView& v_cache, OptionalTensor k_scale,
                    OptionalTensor v_scale, bool written, Device device) {
  check_shape("k_cache", k_cache, {kAny, kAny, kAny, kAny});
  check_dtype("k_cache", k_cache,
              {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3, DType::kI8});
  const int64_t num_pages = k_cache.shape[0], num_kv_heads = k_cache.shape[1];
  const int64_t page_size = k_cache.shape[2], head_dim = k_cache.shape[3];
  check_that(num_kv_heads >= 1, "k_cache",
             "expected at least one head, got shape " + shape_string(k_cache));
  check_that(page_size >= 1 && page_size <= 256 && (page_size & (page_size - 1)) == 0, "k_cache",
             "expected a page_size that is a power of two from 1 to 256, got " +
                 std::to_string(page_size));
  // CUDA copies vectors of 16 bytes of 16-bit types.
  const int64_t step = device.type == DeviceType::kCPU ? 4 : 8;
  check_that(head_dim >= step && head_dim <= 256 && head_dim % step == 0, "k_cache",
             "expected a head_dim up to 256 that is a multiple of " + std::to_string(step) +
                 ", got " + std::to_string(head_dim));
  check_shape("v_cache", v_cache, {num_pages, num_kv_heads, page_size, head_dim});
  check_dtype("v_cache", v_cache, {k_cache.dtype});
  for (const auto& [name, cache] : {std::pair{"k_cache", &k_cache}, {"v_cache", &v_cache}}) {
    check_inner_contiguous(name, *cache);
    check_device(name, *cache, device);
    if (written) check_writable(name, *cache);
  }
  const auto check_scale = [&](const char* name, OptionalTensor scale) {
    if (scale == nullptr) {
      check_that(k_cache.dtype != DType::kI8, name, "an int8 cache needs its scales, got None");
      return;
    }
    check_that(size_of(k_cache.dtype) == 1, name,
               std::string("only int8 and float8_e4m3fn caches have scales, got a cache of ") +
                   name_of(k_cache.dtype));
    check_shape(name, *scale, {num_pages, num_kv_heads, page_size});
    check_dtype(name, *scale, {DType::kF32});
    check_device(name, *scale, device);
    if (written) check_writable(name, *scale);
  };
  check_scale("k_scale", k_scale);
  check_scale("v_scale", v_scale);
}

namespace {

/// Checks slots before anything is written, which a CPU op can afford.
void check_slots(const TensorView& slot_mapping, int64_t num_slots) {
  const int64_t* slots = slot_mapping.ptr<const int64_t>();
  for (int64_t token = 0; token < slot_mapping.shape[0]; ++token) {
    check_that(slots[token] >= -1 && slots[token] < num_slots, "slot_mapping",
               "token " + std::to_string(token) + ": expected a slot in [-1, " +
                   std::to_string(num_slots) + "), got " + std::to_string(slots[token]));
  }
}

void check_positions(const TensorView& positions, int64_t max_positions) {
  for (int64_t token = 0; token < positions.shape[0]; ++token) {
    const int64_t position = positions.dtype == DType::kI64 ? positions.ptr<const int64_t>()[token]
                                                            : positions.ptr<const int32_t>()[token];
    check_that(position >= 0 && position < max_positions, "positions",
               "token " + std::to_string(token) + ": expected a position in [0, " +
                   std::to_string(max_positions) + "), got " + std::to_string(position));
  }
}

}  // namespace

void append_kv(OptionalTensor q, const TensorView& k, const TensorView& v,
               const TensorView& k_cache, const TensorView& v_cache, const TensorView& slot_mapping,
               OptionalTensor positions, OptionalTensor cos_sin, bool interleaved, bool hadamard,
               OptionalTensor q_norm_weight, OptionalTensor k_norm_weight, double eps,
               OptionalTensor k_scale, OptionalTensor v_scale, Stream stream) {
  check_shape("k", k, {kAny, kAny, kAny});
  if (k.device.type == DeviceType::kCPU) {
    check_dtype("k", k, {DType::kF32, DType::kBF16});
  } else {
    check_dtype("k", k, {DType::kF32, DType::kBF16, DType::kF16});
  }
  check_inner_contiguous("k", k);
  const int64_t num_tokens = k.shape[0], num_kv_heads = k.shape[1], head_dim = k.shape[2];
  check_shape("v", v, {num_tokens, num_kv_heads, head_dim});
  check_dtype("v", v, {k.dtype});
  check_inner_contiguous("v", v);
  check_device("v", v, k.device);
  if (q != nullptr) {
    check_shape("q", *q, {num_tokens, kAny, head_dim});
    check_dtype("q", *q, {k.dtype});
    check_inner_contiguous("q", *q);
    check_writable("q", *q);
    check_device("q", *q, k.device);
  }
  check_shape("k_cache", k_cache, {kAny, num_kv_heads, kAny, head_dim});
  check_kv_cache(k_cache, v_cache, k_scale, v_scale, true, k.device);
  check_shape("slot_mapping", slot_mapping, {num_tokens});
  check_dtype("slot_mapping", slot_mapping, {DType::kI64});
  check_contiguous("slot_mapping", slot_mapping);
  check_device("slot_mapping", slot_mapping, k.device);
  int64_t rotary_dim = 0;
  if (cos_sin != nullptr) {
    check_shape("cos_sin", *cos_sin, {kAny, kAny});
    check_dtype("cos_sin", *cos_sin, {DType::kF32});
    check_inner_contiguous("cos_sin", *cos_sin);
    check_device("cos_sin", *cos_sin, k.device);
    rotary_dim = cos_sin->shape[1];
    check_that(rotary_dim >= 2 && rotary_dim % 2 == 0 && rotary_dim <= head_dim, "cos_sin",
               "expected an even rotary_dim of at most head_dim " + std::to_string(head_dim) +
                   ", got " + std::to_string(rotary_dim));
    check_that(cos_sin->shape[0] >= 1, "cos_sin", "expected at least one position, got none");
    check_that(positions != nullptr, "positions", "expected a tensor beside cos_sin, got None");
    check_shape("positions", *positions, {num_tokens});
    check_dtype("positions", *positions, {DType::kI32, DType::kI64});
    check_contiguous("positions", *positions);
    check_device("positions", *positions, k.device);
  }
  const auto check_norm_weight = [&](const char* name, OptionalTensor weight) {
    if (weight == nullptr) return;
    check_shape(name, *weight, {head_dim});
    check_dtype(name, *weight, {DType::kF32, k.dtype});
    check_contiguous(name, *weight);
    check_device(name, *weight, k.device);
  };
  check_norm_weight("q_norm_weight", q_norm_weight);
  check_norm_weight("k_norm_weight", k_norm_weight);
  const OptionalTensor any_weight = q_norm_weight != nullptr ? q_norm_weight : k_norm_weight;
  if (q_norm_weight != nullptr && k_norm_weight != nullptr) {
    check_dtype("k_norm_weight", *k_norm_weight, {q_norm_weight->dtype});
  }
  check_range("eps", eps, 0.0, 1.0);
  const int64_t num_slots = k_cache.shape[0] * k_cache.shape[2];
  const int64_t max_positions = cos_sin != nullptr ? cos_sin->shape[0] : 0;
  if (k.device.type == DeviceType::kCPU) {
    cpu::check_values(slot_mapping.data, num_slots, [=] { check_slots(slot_mapping, num_slots); });
    if (cos_sin != nullptr) {
      cpu::check_values(positions->data, max_positions, [positions = *positions, max_positions] {
        check_positions(positions, max_positions);
      });
    }
  } else {
    const HostCopy slots("append_kv", slot_mapping, stream);
    if (slots) check_slots(slots.view(), num_slots);
    if (cos_sin != nullptr) {
      const HostCopy rows("append_kv", *positions, stream);
      if (rows) check_positions(rows.view(), max_positions);
    }
  }

  const auto stride = [](OptionalTensor t, int dim) { return t != nullptr ? t->stride[dim] : 0; };
  const AppendKvParams params{
      .dtype = k.dtype,
      .cache_dtype = k_cache.dtype,
      .weight_dtype = any_weight != nullptr ? any_weight->dtype : DType::kF32,
      .position_dtype = positions != nullptr ? positions->dtype : DType::kI64,
      .interleaved = interleaved,
      .hadamard = hadamard,
      .num_tokens = num_tokens,
      .num_qo_heads = q != nullptr ? q->shape[1] : 0,
      .num_kv_heads = num_kv_heads,
      .head_dim = head_dim,
      .page_size = k_cache.shape[2],
      .num_pages = k_cache.shape[0],
      .rotary_dim = rotary_dim,
      .max_positions = cos_sin != nullptr ? cos_sin->shape[0] : 0,
      .eps = static_cast<float>(eps),
      .q = q != nullptr ? q->data : nullptr,
      .k = k.data,
      .v = v.data,
      .k_cache = k_cache.data,
      .v_cache = v_cache.data,
      .slot_mapping = slot_mapping.ptr<const int64_t>(),
      .positions = cos_sin != nullptr ? positions->data : nullptr,
      .cos_sin = cos_sin != nullptr ? cos_sin->ptr<const float>() : nullptr,
      .q_norm_weight = q_norm_weight != nullptr ? q_norm_weight->data : nullptr,
      .k_norm_weight = k_norm_weight != nullptr ? k_norm_weight->data : nullptr,
      .k_scale = k_scale != nullptr ? k_scale->ptr<float>() : nullptr,
      .v_scale = v_scale != nullptr ? v_scale->ptr<float>() : nullptr,
      .stride_q_token = stride(q, 0),
      .stride_q_head = stride(q, 1),
      .stride_k_token = k.stride[0],
      .stride_k_head = k.stride[1],
      .stride_v_token = v.stride[0],
      .stride_v_head = v.stride[1],
      .stride_k_cache_page = k_cache.stride[0],
      .stride_k_cache_head = k_cache.stride[1],
      .stride_k_cache_slot = k_cache.stride[2],
      .stride_v_cache_page = v_cache.stride[0],
      .stride_v_cache_head = v_cache.stride[1],
      .stride_v_cache_slot = v_cache.stride[2],
      .stride_k_scale_page = stride(k_scale, 0),
      .stride_k_scale_head = stride(k_scale, 1),
      .stride_k_scale_slot = stride(k_scale, 2),
      .stride_v_scale_page = stride(v_scale, 0),
      .stride_v_scale_head = stride(v_scale, 1),
      .stride_v_scale_slot = stride(v_scale, 2),
      .stride_cos_sin_position = stride(cos_sin, 0),
  };
  on_device(k.device, stream, params, cpu::append_kv, cuda::append_kv);
}

}  // namespace lampo
