// SPDX-License-Identifier: Apache-2.0
// Copies of K and V from their pages to shared memory. A warp copies kRowsPerCopier keys of every
// key tile; a lane holds the page and the address of one of them. Page ids are read one key tile
// ahead, so nothing waits for the page table. Keys that no row of the tile
// sees are zeros; neither they nor their entries of the page table are read. Page ids out of range
// are clamped.
#pragma once

#include "cuda/attention/traits.cuh"
#include "cuda/device/convert.cuh"
#include "cuda/device/ptx/async_copy.cuh"

namespace lampo::cuda {

/// Element i of a row of any type that a cache may have.
template <class T>
__device__ inline T load_converted(const void* row, DType dtype, int i, float scale) {
  switch (dtype) {
    case DType::kF32:
      return from_float<T>(static_cast<const float*>(row)[i]);
    case DType::kBF16:
      return from_float<T>(to_float(static_cast<const BF16*>(row)[i]));
    case DType::kF16:
      return from_float<T>(to_float(static_cast<const F16*>(row)[i]));
    case DType::kF8E4M3:
      return from_float<T>(to_float(static_cast<const F8E4M3*>(row)[i]) * scale);
    default:
      return from_float<T>(static_cast<const int8_t*>(row)[i] * scale);
  }
}

template <class Traits>
class KvCopier {
 public:
  __device__ KvCopier(const AttentionArguments& a, const Work& work)
      : a_(a),
        work_(work),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        first_row_(static_cast<int>(threadIdx.x) / kWarpSize * kRows),
        seen_(work.tile.keys),
        pages_(a.p.page_table + work.at.seq * a.p.stride_page_table_seq),
        k_head_(head_of(a.p.k_cache, a.p.stride_k_cache_head)),
        v_head_(head_of(a.p.v_cache, a.p.stride_v_cache_head)),
        k_scale_(head_of(a.p.k_scale, a.p.stride_k_scale_head)),
        v_scale_(head_of(a.p.v_scale, a.p.stride_v_scale_head)),
        key_(work.part.begin * Traits::kKeys + first_row_ + row() - Traits::kKeys),
        page_ahead_(page_of(key_ + Traits::kKeys)) {}

  /// Advances to the next key tile.
  __device__ void find_next() {
    key_ += Traits::kKeys;
    page_ = max(min(page_ahead_, a_.last_page), 0);
    page_ahead_ = page_of(key_ + Traits::kKeys);
    const int first = key_ - row();
    adjacent_ = a_.adjacent_rows && first >= seen_.begin && first + kRows <= seen_.end;
  }

  /// Starts the copies of this key tile.
  __device__ void copy_k(KvStage<Traits>& stage) const {
    const PagedAttentionParams& p = a_.p;
    copy({k_head_, p.stride_k_cache_page, p.stride_k_cache_slot, k_scale_, p.stride_k_scale_page,
          p.stride_k_scale_slot},
         stage.k, stage.k_scale);
  }
  __device__ void copy_v(KvStage<Traits>& stage) const {
    const PagedAttentionParams& p = a_.p;
    copy({v_head_, p.stride_v_cache_page, p.stride_v_cache_slot, v_scale_, p.stride_v_scale_page,
          p.stride_v_scale_slot},
         stage.v, stage.v_scale);
  }

 private:
  static constexpr int kChunks = Traits::kKvChunks;
  static constexpr int kRows = Traits::kRowsPerCopier;
  static constexpr int kCopies = kRows * kChunks / kWarpSize;  // of 16 bytes per lane

  /// K or V of a head.
  struct Cache {
    const char* data;
    int64_t stride_page, stride_slot;
    const float* scale;  // null: 1
    int64_t stride_scale_page, stride_scale_slot;
  };

  __device__ const char* head_of(const void* cache, int64_t stride) const {
    return static_cast<const char*>(cache) + work_.at.kv_head * stride * a_.kv_bytes;
  }
  __device__ const float* head_of(const float* scale, int64_t stride) const {
    return scale != nullptr ? scale + work_.at.kv_head * stride : nullptr;
  }
  /// The row of the copied ones that the lane holds the address of.
  __device__ int row() const { return lane_ % kRows; }
  __device__ int slot() const { return key_ & ((1 << a_.page_shift) - 1); }
  __device__ bool sees(int key) const { return key >= seen_.begin && key < seen_.end; }
  __device__ int page_of(int key) const { return sees(key) ? pages_[key >> a_.page_shift] : 0; }

  /// Offset of the lane's row, in bytes; -1: a row of zeros.
  __device__ int64_t offset(const Cache& cache) const {
    if (!sees(key_)) return -1;
    return (page_ * cache.stride_page + slot() * cache.stride_slot) * a_.kv_bytes;
  }
  __device__ const float* scale_address(const Cache& cache) const {
    return cache.scale + page_ * cache.stride_scale_page + slot() * cache.stride_scale_slot;
  }

  __device__ void copy(const Cache& cache, uint4* to, float* scales) const {
    if (!a_.copy_kv) return copy_elements(cache, to, scales);
    if constexpr (Traits::kCacheBytes == 1) {
      if (cache.scale != nullptr && lane_ < kRows) {
        const bool seen = sees(key_);
        copy_async<4>(scales + first_row_ + lane_, seen ? scale_address(cache) : cache.scale,
                      seen ? 4 : 0);
      }
    }
    to += first_row_ * kChunks;
    if (adjacent_) {
      const char* from = cache.data + page_ * cache.stride_page * Traits::kCacheBytes +
                         ((slot() - row()) * kChunks + lane_) * kVectorBytes;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        copy_async<kVectorBytes>(to + copy_position<kChunks>(lane_, i),
                                 from + i * kWarpSize * kVectorBytes);
      }
      return;
    }
    const int64_t own = offset(cache);
    const int chunk_begin = lane_ % kChunks * kVectorBytes;
    const int left = static_cast<int>(a_.p.head_dim) * Traits::kCacheBytes - chunk_begin;
#pragma unroll 1
    for (int i = 0; i < kCopies; ++i) {
      const int64_t from = shuffle(own, (i * kWarpSize + lane_) / kChunks);
      const int valid = from < 0 || left < 0 ? 0 : min(left, kVectorBytes);
      copy_async<kVectorBytes>(to + copy_position<kChunks>(lane_, i),
                               cache.data + (valid > 0 ? from + chunk_begin : 0), valid);
    }
  }

  /// Copies element by element: rows that are not aligned, and types that the kernel does not
  /// multiply. 8-bit elements that become 16-bit ones are multiplied by their scale here.
  __device__ void copy_elements(const Cache& cache, uint4* to, float* scales) const {
    using T = std::conditional_t<Traits::kCacheBytes == 1, uint8_t, typename Traits::Element>;
    constexpr int kPer = kVectorBytes / static_cast<int>(sizeof(T));
    const int64_t own = offset(cache);
    float own_scale = 1.0f;
    if (cache.scale != nullptr) own_scale = own >= 0 ? *scale_address(cache) : 0.0f;
    if constexpr (Traits::kCacheBytes == 1) {
      if (lane_ < kRows) scales[first_row_ + lane_] = own_scale;
    }
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      const int64_t from = shuffle(own, r);
      const float scale = shuffle(own_scale, r);
#pragma unroll 1
      for (int i = lane_; i < kChunks * kPer; i += kWarpSize) {
        T value{};
        if (from >= 0 && i < a_.p.head_dim) {
          if constexpr (Traits::kCacheBytes == 1) {
            value = reinterpret_cast<const T*>(cache.data + from)[i];
          } else {
            value = load_converted<T>(cache.data + from, a_.p.cache_dtype, i, scale);
          }
        }
        uint4* chunk = to + chunk_position<kChunks>(first_row_ + r, i / kPer);
        reinterpret_cast<T*>(chunk)[i % kPer] = value;
      }
    }
  }

  const AttentionArguments& a_;
  const Work& work_;
  const int lane_;
  const int first_row_;         // of the warp, in a key tile
  const Range seen_;            // keys that any row of the tile sees
  const int32_t* const pages_;  // of the sequence
  const char *const k_head_, *const v_head_;
  const float *const k_scale_, *const v_scale_;
  int key_;  // of the lane
  int page_ = 0;
  int page_ahead_;
  bool adjacent_ = false;  // the warp's rows of this key tile
};

}  // namespace lampo::cuda
