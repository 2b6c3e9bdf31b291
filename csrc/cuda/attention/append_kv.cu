// SPDX-License-Identifier: Apache-2.0
// q, k := rope(norm(q)), rope(norm(k)), q in place; k and v are written to their pages, in the
// cache's type. The twin of cpu/attention/append_kv.cpp, which has the formulas: the same bits
// without a norm (its sum has another order, so results may differ by an ulp).
//
// q [num_tokens, num_qo_heads, head_dim]; k, v [num_tokens, num_kv_heads, head_dim]; caches
// [num_pages, num_kv_heads, page_size, head_dim]. One launch for all heads. A head belongs to 4, 8,
// 16 or 32 neighbouring lanes, 8 elements each, in registers: sums and maxima by shuffles, no block
// barrier. The two halves of a rotation are exchanged in shared memory, private to those lanes.
//
// Values out of range: such a slot, like -1, writes nothing; a position is clamped.
//
// Bytes: q twice, k and v once, their pages once. About 10 FLOPs per element: memory-bound.
// bfloat16, 32 q and 8 kv heads of 128: 24 KB a token; 4096 tokens 101 MB, 23 us at 4.3 TB/s (an
// H200's measured copy rate). One token is bound by latency: slot or position, then the head.
//
// Limits: head_dim a multiple of 8 up to 256. Not run on a GPU yet: compiled for sm_80 to sm_120
// without spills, and run on the CPU (tests/cuda_on_cpu/).
#include <initializer_list>

#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/convert.cuh"
#include "cuda/device/copy.cuh"
#include "cuda/device/ptx/shared_memory.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/device/warp.cuh"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/row_layout.h"

namespace lampo::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPerLane = 8;
using Part = Vector<float, kPerLane>;  // of a head
using Quad = Vector<float, 4>;

struct SharedStorage {
  alignas(16) float heads[kThreads * kPerLane];
};

struct HeadLayout {
  int lanes;     // of a head
  bool aligned;  // all rows are, to their vectors
  bool quads;    // a rotation's halves and its cos and sin are aligned to 4 elements
};

/// Operations on one head; null: none.
template <class T, class C>
struct HeadTask {
  const T* from = nullptr;
  T* q = nullptr;      // written in place,
  C* cache = nullptr;  // or to its page,
  float* scale = nullptr;
  const void* norm_weight = nullptr;
  const float* cos_sin = nullptr;
  bool is_v = false;
};

template <class T, class C>
__device__ inline HeadTask<T, C> task_of(const AppendKvParams& p, int64_t token, int64_t head) {
  HeadTask<T, C> task;
  const bool is_q = head < p.num_qo_heads;
  const bool is_k = !is_q && head < p.num_qo_heads + p.num_kv_heads;
  if ((is_q || is_k) && p.rotary_dim > 0) {
    const int64_t position = p.position_dtype == DType::kI64
                                 ? static_cast<const int64_t*>(p.positions)[token]
                                 : static_cast<const int32_t*>(p.positions)[token];
    const int64_t clamped = max(int64_t{0}, min(position, p.max_positions - 1));
    task.cos_sin = p.cos_sin + clamped * p.stride_cos_sin_position;
  }
  if (is_q) {
    task.q = static_cast<T*>(p.q) + token * p.stride_q_token + head * p.stride_q_head;
    task.from = task.q;
    task.norm_weight = p.q_norm_weight;
    return task;
  }
  const int64_t slot = p.slot_mapping[token];
  if (slot < 0 || slot >= p.num_pages * p.page_size) return task;
  const int64_t page = slot / p.page_size;
  const int64_t offset = slot - page * p.page_size;
  const int64_t h = head - p.num_qo_heads - (is_k ? 0 : p.num_kv_heads);
  if (is_k) {
    task.from = static_cast<const T*>(p.k) + token * p.stride_k_token + h * p.stride_k_head;
    task.norm_weight = p.k_norm_weight;
    task.cache = static_cast<C*>(p.k_cache) + page * p.stride_k_cache_page +
                 h * p.stride_k_cache_head + offset * p.stride_k_cache_slot;
    if (p.k_scale != nullptr) {
      task.scale = p.k_scale + page * p.stride_k_scale_page + h * p.stride_k_scale_head +
                   offset * p.stride_k_scale_slot;
    }
  } else {
    task.is_v = true;
    task.from = static_cast<const T*>(p.v) + token * p.stride_v_token + h * p.stride_v_head;
    task.cache = static_cast<C*>(p.v_cache) + page * p.stride_v_cache_page +
                 h * p.stride_v_cache_head + offset * p.stride_v_cache_slot;
    if (p.v_scale != nullptr) {
      task.scale = p.v_scale + page * p.stride_v_scale_page + h * p.stride_v_scale_head +
                   offset * p.stride_v_scale_slot;
    }
  }
  return task;
}

template <class T>
__device__ inline Part load_floats(const T* from, bool aligned) {
  return to_floats(aligned ? load_vector<T, kPerLane>(from)
                           : load_elements<T, kPerLane>(from, kPerLane));
}

template <class C>
__device__ inline void store_rounded(C* to, const Part& part, bool aligned) {
  Vector<C, kPerLane> rounded;
  if constexpr (std::is_same_v<C, int8_t>) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const float nearest = rintf(fminf(fmaxf(part.value[i], -127.0f), 127.0f));
      rounded.value[i] = static_cast<int8_t>(static_cast<int>(nearest));
    }
  } else {
    rounded = from_floats<C>(part);
  }
  if (aligned) {
    store_vector(to, rounded);
  } else {
    store_elements(to, rounded, kPerLane);
  }
}

/// (a, b) -> (a cos - b sin, b cos + a sin) for the elements from `begin` on, rounded as on the
/// CPU. `head`: shared memory of the lanes of this head.
__device__ inline void rotate(const AppendKvParams& p, const HeadLayout& layout, const float* cos,
                              const float* head, int begin, Part& part) {
  const int half = static_cast<int>(p.rotary_dim) / 2;
  const float* sin = cos + half;
  if (p.interleaved) {
#pragma unroll
    for (int i = 0; i < kPerLane / 2; ++i) {
      const int pair = begin / 2 + i;
      if (pair >= half) continue;
      const float a = part.value[2 * i], b = part.value[2 * i + 1];
      const float c = cos[pair], s = sin[pair];
      part.value[2 * i] = a * c - b * s;
      part.value[2 * i + 1] = b * c + a * s;
    }
    return;
  }
  const auto rotated = [](bool first, float own, float other, float c, float s) {
    return first ? own * c - other * s : fmaf(own, c, other * s);
  };
  if (layout.quads) {
#pragma unroll
    for (int i = 0; i < kPerLane; i += 4) {
      const int at = begin + i;
      if (at >= 2 * half) continue;
      const bool first = at < half;
      const int angle = first ? at : at - half;
      const Quad other = load_vector<float, 4>(head + (first ? at + half : angle));
      const Quad c = load_vector<float, 4>(cos + angle);
      const Quad s = load_vector<float, 4>(sin + angle);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        part.value[i + j] =
            rotated(first, part.value[i + j], other.value[j], c.value[j], s.value[j]);
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int at = begin + i;
    if (at >= 2 * half) continue;
    const bool first = at < half;
    const int angle = first ? at : at - half;
    part.value[i] =
        rotated(first, part.value[i], head[first ? at + half : angle], cos[angle], sin[angle]);
  }
}

/// The orthonormal Hadamard transform of the blocks of a head, in the order of additions of the
/// CPU. Neighbouring lanes have neighbouring elements.
__device__ inline Part hadamard(Part part, int begin, int block) {
  const float scale = 1.0f / sqrtf(static_cast<float>(block));
#pragma unroll
  for (float& value : part.value) value *= scale;
#pragma unroll
  for (int stride = 1; stride < kPerLane; stride *= 2) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (i & stride) continue;
      const float a = part.value[i], b = part.value[i + stride];
      part.value[i] = a + b;
      part.value[i + stride] = a - b;
    }
  }
  for (int stride = kPerLane; stride < block; stride *= 2) {
    const bool second = begin & stride;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const float other = shuffle_xor(part.value[i], stride / kPerLane);
      part.value[i] = second ? other - part.value[i] : part.value[i] + other;
    }
  }
  return part;
}

/// Lanes past the end of a head have zeros; heads past the last do nothing.
template <class T, class C>
__global__ void __launch_bounds__(kThreads)
    append_kv_kernel(const __grid_constant__ AppendKvParams p, HeadLayout layout) {
  wait_for_stream();
  const int lanes = layout.lanes;
  const int heads_per_block = kThreads / lanes;
  const int begin = static_cast<int>(threadIdx.x) % lanes * kPerLane;
  const bool inside = begin < p.head_dim;
  float* shared = shared_storage<SharedStorage>().heads +
                  static_cast<int>(threadIdx.x) / lanes * lanes * kPerLane;
  const int64_t heads = p.num_qo_heads + 2 * p.num_kv_heads;
  const int64_t total = p.num_tokens * heads;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * heads_per_block; first < total;
       first += static_cast<int64_t>(gridDim.x) * heads_per_block) {
    const int64_t index = first + static_cast<int>(threadIdx.x) / lanes;
    HeadTask<T, C> task;
    if (index < total) task = task_of<T, C>(p, index / heads, index % heads);
    const bool active = inside && task.from != nullptr;
    Part part = {};
    if (active) part = load_floats(task.from + begin, layout.aligned);

    if (p.q_norm_weight != nullptr || p.k_norm_weight != nullptr) {
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) squares = fmaf(part.value[i], part.value[i], squares);
      for (int mask = lanes / 2; mask > 0; mask /= 2) squares += shuffle_xor(squares, mask);
      if (active && task.norm_weight != nullptr) {
        const Part weight =
            p.weight_dtype == DType::kF32
                ? load_floats(static_cast<const float*>(task.norm_weight) + begin, layout.aligned)
                : load_floats(static_cast<const T*>(task.norm_weight) + begin, layout.aligned);
        const float scale = 1.0f / sqrtf(squares / static_cast<float>(p.head_dim) + p.eps);
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          part.value[i] = part.value[i] * scale * weight.value[i];
        }
      }
    }
    if (p.rotary_dim > 0) {
      if (!p.interleaved) {
        __syncwarp();  // the last head has been read
        store_vector(shared + begin, part);
        __syncwarp();
      }
      if (active && task.cos_sin != nullptr) rotate(p, layout, task.cos_sin, shared, begin, part);
    }
    if (p.hadamard) {
      const Part transformed = hadamard(part, begin, static_cast<int>(p.head_dim & -p.head_dim));
      if (!task.is_v) part = transformed;
    }
    if (p.k_scale != nullptr || p.v_scale != nullptr) {
      constexpr float kLargest = std::is_same_v<C, int8_t> ? 127.0f : 448.0f;
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) largest = fmaxf(largest, fabsf(part.value[i]));
      for (int mask = lanes / 2; mask > 0; mask /= 2) {
        largest = fmaxf(largest, shuffle_xor(largest, mask));
      }
      if (active && task.scale != nullptr) {
        if (begin == 0) *task.scale = largest / kLargest;
        // Below 1e-35 the inverse would overflow: such a head is stored as zeros.
        const float inverse = largest > 1e-35f ? kLargest / largest : 0.0f;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) part.value[i] *= inverse;
      }
    }
    if (!active) continue;
    if (task.q != nullptr) {
      store_rounded(task.q + begin, part, layout.aligned);
    } else {
      store_rounded(task.cache + begin, part, layout.aligned);
    }
  }
}

template <class T, class C>
HeadLayout choose_layout(const AppendKvParams& p) {
  HeadLayout layout = {4, true, p.rotary_dim / 2 % 4 == 0};
  while (layout.lanes * kPerLane < p.head_dim) layout.lanes *= 2;
  const auto need = [&](const void* pointer, int size, std::initializer_list<int64_t> strides) {
    for (const int64_t stride : strides) {
      layout.aligned = layout.aligned && rows_aligned(pointer, stride, size);
    }
  };
  constexpr int kSize = sizeof(T), kCacheSize = sizeof(C);
  const int weight_size = p.weight_dtype == DType::kF32 ? 4 : kSize;
  need(p.q, kSize, {p.stride_q_token, p.stride_q_head});
  need(p.k, kSize, {p.stride_k_token, p.stride_k_head});
  need(p.v, kSize, {p.stride_v_token, p.stride_v_head});
  need(p.k_cache, kCacheSize,
       {p.stride_k_cache_page, p.stride_k_cache_head, p.stride_k_cache_slot});
  need(p.v_cache, kCacheSize,
       {p.stride_v_cache_page, p.stride_v_cache_head, p.stride_v_cache_slot});
  need(p.q_norm_weight, weight_size, {0});
  need(p.k_norm_weight, weight_size, {0});
  layout.quads = layout.quads && rows_aligned(p.cos_sin, p.stride_cos_sin_position, sizeof(float));
  return layout;
}

template <class T, class C>
void run(const AppendKvParams& p, int device, Stream stream) {
  const HeadLayout layout = choose_layout<T, C>(p);
  const int heads_per_block = kThreads / layout.lanes;
  const int64_t heads = p.num_tokens * (p.num_qo_heads + 2 * p.num_kv_heads);
  const int64_t blocks = (heads + heads_per_block - 1) / heads_per_block;
  const Launch at{
      .op = "append_kv",
      .device = device,
      .stream = stream,
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(kThreads),
      .shared_bytes = sizeof(SharedStorage),
      .begins_early = true,
  };
  launch(at, append_kv_kernel<T, C>, p, layout);
}

}  // namespace

void append_kv(const AppendKvParams& params, int device, Stream stream) {
  AppendKvParams p = params;
  if (p.rotary_dim == 0 && p.q_norm_weight == nullptr && !p.hadamard)
    p.num_qo_heads = 0;  // q is unchanged
  if (p.num_tokens == 0) return;
  dispatch_dtype<float, BF16, F16>(p.dtype, [&]<class T>() {
    dispatch_dtype<float, F16, BF16, F8E4M3, int8_t>(
        p.cache_dtype, [&]<class C>() { run<T, C>(p, device, stream); });
  });
}

}  // namespace lampo::cuda
