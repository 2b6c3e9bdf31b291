// SPDX-License-Identifier: Apache-2.0
// Copies of K and V from their pages to shared memory. A warp copies kRowsPerCopier keys of every
// key tile: lanes 0 to 15 hold the addresses of K rows, lanes 16 to 31 those of V rows. Page ids
// are read one key tile ahead, so nothing waits for the page table. Keys that no row of the tile
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
        key_(work.part.begin * Traits::kKeys + first_row_ + row() - Traits::kKeys),
        page_ahead_(page_of(key_ + Traits::kKeys)) {}

  /// Advances to the next key tile.
  __device__ void find_next() {
    key_ += Traits::kKeys;
    page_ = clamp_to(page_ahead_, 0, a_.p.num_pages - 1);
    page_ahead_ = page_of(key_ + Traits::kKeys);
  }

  /// Starts the copies of this key tile.
  __device__ void copy_k(KvStage<Traits>& stage) const {
    copy<0>(static_cast<const char*>(a_.p.k_cache), a_.p.stride_k_cache_head, stage.k,
            stage.k_scale);
  }
  __device__ void copy_v(KvStage<Traits>& stage) const {
    copy<16>(static_cast<const char*>(a_.p.v_cache), a_.p.stride_v_cache_head, stage.v,
             stage.v_scale);
  }

 private:
  static constexpr int kChunks = Traits::kKvChunks;
  static constexpr int kRows = Traits::kRowsPerCopier;

  __device__ bool is_k() const { return lane_ < 16; }
  __device__ int row() const { return lane_ % 16; }
  __device__ int slot() const { return key_ & ((1 << a_.page_shift) - 1); }
  __device__ bool sees(int key) const {
    return row() < kRows && key >= work_.tile.keys.begin && key < work_.tile.keys.end;
  }
  __device__ int page_of(int key) const {
    if (!sees(key)) return 0;
    return a_.p.page_table[work_.at.seq * a_.p.stride_page_table_seq + (key >> a_.page_shift)];
  }

  /// Offset of the lane's row from the head's first, in bytes; -1: a row of zeros. Recomputed for
  /// every key tile, since registers are scarce.
  __device__ int64_t offset() const {
    if (!sees(key_)) return -1;
    const PagedAttentionParams& p = a_.p;
    return (page_ * (is_k() ? p.stride_k_cache_page : p.stride_v_cache_page) +
            slot() * (is_k() ? p.stride_k_cache_slot : p.stride_v_cache_slot)) *
           a_.kv_bytes;
  }
  __device__ const float* scale_address() const {
    const PagedAttentionParams& p = a_.p;
    return is_k() ? p.k_scale + work_.at.kv_head * p.stride_k_scale_head +
                        page_ * p.stride_k_scale_page + slot() * p.stride_k_scale_slot
                  : p.v_scale + work_.at.kv_head * p.stride_v_scale_head +
                        page_ * p.stride_v_scale_page + slot() * p.stride_v_scale_slot;
  }

  /// kFirstLane: first of the 16 lanes that hold the addresses.
  template <int kFirstLane>
  __device__ void copy(const char* cache, int64_t stride_head, uint4* to, float* scales) const {
    const char* head = cache + work_.at.kv_head * stride_head * a_.kv_bytes;
    if (!a_.copy_kv) return copy_elements<kFirstLane>(head, to, scales);
    if constexpr (Traits::kCacheBytes == 1) {
      if (a_.p.k_scale != nullptr && lane_ / 16 == kFirstLane / 16 && row() < kRows) {
        const bool seen = sees(key_);
        copy_async<4>(scales + first_row_ + row(), seen ? scale_address() : a_.p.k_scale,
                      seen ? 4 : 0);
      }
    }
    const int64_t own = offset();
    const int row_bytes = static_cast<int>(a_.p.head_dim) * Traits::kCacheBytes;
    to += first_row_ * kChunks;
#pragma unroll 1  // unrolled, its addresses cost the products registers
    for (int i = 0; i < kRows * kChunks / kWarpSize; ++i) {
      const int r = (i * kWarpSize + lane_) / kChunks;
      const int chunk = (i * kWarpSize + lane_) % kChunks;
      const int64_t from = shuffle(own, kFirstLane + r);
      const int left = row_bytes - chunk * kVectorBytes;
      const int valid = from < 0 || left < 0 ? 0 : min(left, kVectorBytes);
      copy_async<kVectorBytes>(to + chunk_position<kChunks>(r, chunk),
                               valid > 0 ? head + from + chunk * kVectorBytes : cache, valid);
    }
  }

  /// Copies element by element: rows that are not aligned, and types that the kernel does not
  /// multiply. 8-bit elements that become 16-bit ones are multiplied by their scale here.
  template <int kFirstLane>
  __device__ void copy_elements(const char* head, uint4* to, float* scales) const {
    using T = std::conditional_t<Traits::kCacheBytes == 1, uint8_t, typename Traits::Element>;
    constexpr int kPer = kVectorBytes / static_cast<int>(sizeof(T));
    const int64_t own = offset();
    float own_scale = 1.0f;
    if (a_.p.k_scale != nullptr) own_scale = own >= 0 ? *scale_address() : 0.0f;
    if constexpr (Traits::kCacheBytes == 1) {
      if (lane_ / 16 == kFirstLane / 16 && row() < kRows) scales[first_row_ + row()] = own_scale;
    }
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      const int64_t from = shuffle(own, kFirstLane + r);
      const float scale = shuffle(own_scale, kFirstLane + r);
#pragma unroll 1
      for (int i = lane_; i < kChunks * kPer; i += kWarpSize) {
        T value{};
        if (from >= 0 && i < a_.p.head_dim) {
          if constexpr (Traits::kCacheBytes == 1) {
            value = reinterpret_cast<const T*>(head + from)[i];
          } else {
            value = load_converted<T>(head + from, a_.p.cache_dtype, i, scale);
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
  const int first_row_;  // of the warp, in a key tile
  int key_;              // of the lane
  int page_ = 0;
  int page_ahead_;
};

}  // namespace lampo::cuda
