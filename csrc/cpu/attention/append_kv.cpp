// SPDX-License-Identifier: Apache-2.0
// q, k := rope(norm(q)), rope(norm(k)), q in place; k and v are written to their pages, in the
// cache's type.
//   norm(x) = x * weight / sqrt(mean(x^2) + eps), per head; optional
//   rope: (a, b) -> (a cos - b sin, b cos + a sin) on the pairs (i, i + rotary_dim / 2), or
//   (2i, 2i + 1) if interleaved; elements from rotary_dim on are unchanged
//   hadamard: q and k times an orthonormal Hadamard matrix, in blocks of the largest power of two
//   that divides head_dim: the same scores, from keys without large channels
//   int8: scale = max|x| / 127 of the head's vector; f8 with scales: max|x| / 448
//
// q [num_tokens, num_qo_heads, head_dim]; k, v [num_tokens, num_kv_heads, head_dim]; caches
// [num_pages, num_kv_heads, page_size, head_dim]. Work: (token, head) pairs are divided among
// threads, the heads of q, then of k, then of v; one head is normed and rotated in f32 in an L1
// buffer and rounded once. Bytes: q twice, k and v once, their pages once. FLOPs: about 10 per
// element.
// Memory-bound; for one token (decode) the overhead of the call dominates.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int64_t kMaxHeadDim = 256;

/// A head in f32, padded so that whole vectors can be read and written anywhere in it.
struct alignas(64) Head {
  float x[kMaxHeadDim + F32::kWidth];
};

template <class T>
void load_head(const T* from, int64_t size, Head& head) {
  for_each_vector(size, [&](int64_t i, int n) { store(head.x + i, load_n(from + i, n)); });
}

template <class W>
void norm_head(const W* weight, int64_t size, float eps, Head& head) {
  F32 squares;
  for_each_vector(size, [&](int64_t i, int n) {
    const F32 value = load_n(head.x + i, n);
    squares = fma(value, value, squares);
  });
  const F32 scale(1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(size) + eps));
  for_each_vector(size, [&](int64_t i, int n) {
    store_n(head.x + i, load_n(head.x + i, n) * scale * load_n(weight + i, n), n);
  });
}

void rotate_head(const float* cos, int64_t rotary_dim, bool interleaved, Head& head) {
  const int64_t half = rotary_dim / 2;
  const float* sin = cos + half;
  if (!interleaved) {
    for_each_vector(half, [&](int64_t i, int n) {
      const F32 a = load_n(head.x + i, n), b = load_n(head.x + half + i, n);
      const F32 c = load_n(cos + i, n), s = load_n(sin + i, n);
      store_n(head.x + i, a * c - b * s, n);
      store_n(head.x + half + i, fma(b, c, a * s), n);
    });
    return;
  }
  for (int64_t i = 0; i < half; ++i) {
    const float a = head.x[2 * i], b = head.x[2 * i + 1];
    head.x[2 * i] = a * cos[i] - b * sin[i];
    head.x[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

/// The steps of a Hadamard transform within a vector.
template <int kStride = 1>
F32 butterflies(F32 x, int64_t block) {
  if constexpr (kStride < F32::kWidth) {
    if (kStride < block) return butterflies<2 * kStride>(butterfly<kStride>(x), block);
  }
  return x;
}

/// Multiplies blocks of a head by the orthonormal Hadamard matrix, factor by factor.
void hadamard(int64_t size, int64_t block, Head& head) {
  const F32 scale(1.0f / __builtin_sqrtf(static_cast<float>(block)));
  for (int64_t i = 0; i < size; i += F32::kWidth) {
    store(head.x + i, butterflies(load(head.x + i) * scale, block));
  }
  for (int64_t stride = F32::kWidth; stride < block; stride *= 2) {
    for (int64_t first = 0; first < size; first += 2 * stride) {
      for (int64_t i = first; i < first + stride; i += F32::kWidth) {
        const F32 a = load(head.x + i), b = load(head.x + i + stride);
        store(head.x + i, a + b);
        store(head.x + i + stride, a - b);
      }
    }
  }
}

/// Writes a head in the type of the cache, with its scale unless `scale` is null.
template <class C>
void store_head(const Head& head, int64_t size, C* to, float* scale) {
  F32 inverse(1.0f);
  if (scale != nullptr) {
    constexpr float kLargest = std::is_same_v<C, int8_t> ? 127.0f : 448.0f;
    F32 largest;
    for_each_vector(size, [&](int64_t i, int n) {
      const F32 value = load_n(head.x + i, n);
      largest = max(largest, max(value, -value));
    });
    const float absmax = reduce_max(largest);
    *scale = absmax / kLargest;
    // Below 1e-35 the inverse would overflow: such a head is stored as zeros.
    inverse = F32(absmax > 1e-35f ? kLargest / absmax : 0.0f);
  }
  for_each_vector(size,
                  [&](int64_t i, int n) { store_n(to + i, load_n(head.x + i, n) * inverse, n); });
}

template <class T, class W, class C>
void run(const AppendKvParams& p, const Team& team) {
  const int64_t heads = p.num_qo_heads + 2 * p.num_kv_heads;
  const Share share = share_of(p.num_tokens * heads, team);
  Head head;
  for (int64_t at = share.begin; at < share.end; ++at) {
    const int64_t token = at / heads;
    int64_t h = at % heads;
    const auto rotate = [&] {
      if (p.rotary_dim > 0) {
        const int64_t position = p.position_dtype == DType::kI64
                                     ? static_cast<const int64_t*>(p.positions)[token]
                                     : static_cast<const int32_t*>(p.positions)[token];
        rotate_head(p.cos_sin + position * p.stride_cos_sin_position, p.rotary_dim, p.interleaved,
                    head);
      }
      if (p.hadamard) hadamard(p.head_dim, p.head_dim & -p.head_dim, head);
    };
    if (h < p.num_qo_heads) {
      if (p.rotary_dim == 0 && p.q_norm_weight == nullptr && !p.hadamard) continue;
      T* q = static_cast<T*>(p.q) + token * p.stride_q_token + h * p.stride_q_head;
      load_head(q, p.head_dim, head);
      if (p.q_norm_weight != nullptr) {
        norm_head(static_cast<const W*>(p.q_norm_weight), p.head_dim, p.eps, head);
      }
      rotate();
      for_each_vector(p.head_dim,
                      [&](int64_t i, int n) { store_n(q + i, load_n(head.x + i, n), n); });
      continue;
    }
    const int64_t slot = p.slot_mapping[token];
    if (slot < 0) continue;
    const int64_t page = slot / p.page_size;
    const int64_t offset = slot % p.page_size;
    h -= p.num_qo_heads;
    if (h < p.num_kv_heads) {
      load_head(static_cast<const T*>(p.k) + token * p.stride_k_token + h * p.stride_k_head,
                p.head_dim, head);
      if (p.k_norm_weight != nullptr) {
        norm_head(static_cast<const W*>(p.k_norm_weight), p.head_dim, p.eps, head);
      }
      rotate();
      C* to = static_cast<C*>(p.k_cache) + page * p.stride_k_cache_page +
              h * p.stride_k_cache_head + offset * p.stride_k_cache_slot;
      float* scale = p.k_scale == nullptr
                         ? nullptr
                         : p.k_scale + page * p.stride_k_scale_page + h * p.stride_k_scale_head +
                               offset * p.stride_k_scale_slot;
      store_head(head, p.head_dim, to, scale);
    } else {
      h -= p.num_kv_heads;
      load_head(static_cast<const T*>(p.v) + token * p.stride_v_token + h * p.stride_v_head,
                p.head_dim, head);
      C* to = static_cast<C*>(p.v_cache) + page * p.stride_v_cache_page +
              h * p.stride_v_cache_head + offset * p.stride_v_cache_slot;
      float* scale = p.v_scale == nullptr
                         ? nullptr
                         : p.v_scale + page * p.stride_v_scale_page + h * p.stride_v_scale_head +
                               offset * p.stride_v_scale_slot;
      store_head(head, p.head_dim, to, scale);
    }
  }
}

}  // namespace

void append_kv(const AppendKvParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() {
    dispatch_dtype<float, BF16>(p.weight_dtype, [&]<class W>() {
      dispatch_dtype<float, F16, BF16, F8E4M3, int8_t>(p.cache_dtype,
                                                       [&]<class C>() { run<T, W, C>(p, team); });
    });
  });
}

}  // namespace lampo::cpu::LAMPO_ISA
