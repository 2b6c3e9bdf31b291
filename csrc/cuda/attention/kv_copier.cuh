// SPDX-License-Identifier: Apache-2.0
// K and V from their pages to shared memory. A warp copies kRowsPerCopier keys of every key tile:
// lanes 0 to 15 know where their K rows are, lanes 16 to 31 their V rows. Page ids are read one
// key tile ahead, so that nothing waits for the page table. Keys that no row of the tile sees are
// zeros and are not read: unused slots and table entries may hold anything. Page ids out of range
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
  static constexpr int kChunks = Traits::kKvChunks;
  static constexpr int kRows = Traits::kRowsPerCopier;

  /// For the keys `keys` of a sequence and a KV head, from `first_key_tile` on.
  __device__ KvCopier(const AttentionArguments& a, const Cut& at, Range keys, int first_key_tile)
      : a_(a),
        keys_(keys),
        pages_(a.p.page_table + at.seq * a.p.stride_page_table_seq),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        first_row_(static_cast<int>(threadIdx.x) / kWarpSize * kRows) {
    const PagedAttentionParams& p = a.p;
    k_ = static_cast<const char*>(p.k_cache) + at.kv_head * p.stride_k_cache_head * a.kv_bytes;
    v_ = static_cast<const char*>(p.v_cache) + at.kv_head * p.stride_v_cache_head * a.kv_bytes;
    if (p.k_scale != nullptr) {
      scale_ = is_k() ? p.k_scale + at.kv_head * p.stride_k_scale_head
                      : p.v_scale + at.kv_head * p.stride_v_scale_head;
    }
    page_ahead_ = page_of(first_key_tile);
  }

  /// Finds the rows of a key tile; key tiles come one after the other.
  __device__ void find(int key_tile) {
    const int page = page_ahead_;
    page_ahead_ = page_of(key_tile + 1);
    offset_ = -1;
    const int key = key_of(key_tile);
    if (!sees(key)) return;
    // Strides are read where they are wanted: registers are scarce.
    const PagedAttentionParams& p = a_.p;
    const int64_t in_range = clamp_to(page, 0, p.num_pages - 1);
    const int slot = key & ((1 << a_.page_shift) - 1);
    offset_ = (in_range * (is_k() ? p.stride_k_cache_page : p.stride_v_cache_page) +
               slot * (is_k() ? p.stride_k_cache_slot : p.stride_v_cache_slot)) *
              a_.kv_bytes;
    scale_offset_ = in_range * (is_k() ? p.stride_k_scale_page : p.stride_v_scale_page) +
                    slot * (is_k() ? p.stride_k_scale_slot : p.stride_v_scale_slot);
  }

  /// Starts the copies of what was found last.
  __device__ void copy_k(KvStage<Traits>& stage) const { copy<0>(k_, stage.k, stage.k_scale); }
  __device__ void copy_v(KvStage<Traits>& stage) const { copy<16>(v_, stage.v, stage.v_scale); }

 private:
  __device__ bool is_k() const { return lane_ < 16; }
  __device__ int row() const { return lane_ % 16; }
  __device__ int key_of(int key_tile) const { return key_tile * Traits::kKeys + first_row_ + row(); }
  __device__ bool sees(int key) const {
    return row() < kRows && key >= keys_.begin && key < keys_.end;
  }
  __device__ int page_of(int key_tile) const {
    const int key = key_of(key_tile);
    return sees(key) ? pages_[key >> a_.page_shift] : 0;
  }

  template <int kFirstLane>
  __device__ void copy(const char* base, uint4* to, float* scales) const {
    if (!a_.copy_kv) return copy_slowly<kFirstLane>(base, to, scales);
    if constexpr (Traits::kCacheBytes == 1) {
      if (scale_ != nullptr && lane_ / 16 == kFirstLane / 16 && row() < kRows) {
        const bool seen = offset_ >= 0;
        copy_async<4>(scales + first_row_ + row(), seen ? scale_ + scale_offset_ : scale_,
                      seen ? 4 : 0);
      }
    }
    const int row_bytes = static_cast<int>(a_.p.head_dim) * Traits::kCacheBytes;
    to += first_row_ * kChunks;
#pragma unroll
    for (int i = 0; i < kRows * kChunks / kWarpSize; ++i) {
      const int r = (i * kWarpSize + lane_) / kChunks;
      const int chunk = (i * kWarpSize + lane_) % kChunks;
      const int64_t from = shuffle(offset_, kFirstLane + r);
      const int left = row_bytes - chunk * kVectorBytes;
      const int valid = from < 0 || left < 0 ? 0 : min(left, kVectorBytes);
      copy_async<kVectorBytes>(to + chunk_position<kChunks>(r, chunk),
                               valid > 0 ? base + from + chunk * kVectorBytes : base, valid);
    }
  }

  /// Right rather than fast, element by element: rows that are not aligned, and types that the
  /// kernel does not multiply by. 8 bits that become 16 here are multiplied by their scale here.
  template <int kFirstLane>
  __device__ void copy_slowly(const char* base, uint4* to, float* scales) const {
    using T = std::conditional_t<Traits::kCacheBytes == 1, uint8_t, typename Traits::Element>;
    constexpr int kPer = kVectorBytes / static_cast<int>(sizeof(T));
    const bool scaled = scale_ != nullptr && offset_ >= 0;
    const float own_scale = scaled ? scale_[scale_offset_] : scale_ != nullptr ? 0.0f : 1.0f;
    if constexpr (Traits::kCacheBytes == 1) {
      if (lane_ / 16 == kFirstLane / 16 && row() < kRows) scales[first_row_ + row()] = own_scale;
    }
#pragma unroll 1
    for (int r = 0; r < kRows; ++r) {
      const int64_t from = shuffle(offset_, kFirstLane + r);
      const float scale = shuffle(own_scale, kFirstLane + r);
#pragma unroll 1
      for (int i = lane_; i < kChunks * kPer; i += kWarpSize) {
        T value{};
        if (from >= 0 && i < a_.p.head_dim) {
          if constexpr (Traits::kCacheBytes == 1) {
            value = reinterpret_cast<const T*>(base + from)[i];
          } else {
            value = load_converted<T>(base + from, a_.p.cache_dtype, i, scale);
          }
        }
        uint4* chunk = to + chunk_position<kChunks>(first_row_ + r, i / kPer);
        reinterpret_cast<T*>(chunk)[i % kPer] = value;
      }
    }
  }

  const AttentionArguments& a_;
  const Range keys_;
  const int32_t* const pages_;
  const int lane_;
  const int first_row_;
  const char* k_;
  const char* v_;
  const float* scale_ = nullptr;
  int page_ahead_;
  int64_t offset_ = -1;  // in bytes; -1: a row of zeros
  int64_t scale_offset_ = 0;
};

}  // namespace lampo::cuda
