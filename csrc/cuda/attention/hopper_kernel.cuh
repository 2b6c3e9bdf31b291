// SPDX-License-Identifier: Apache-2.0
// The paged attention kernel for wgmma and TMA, sm_90a: paged_attention_hopper.cu describes it.
#pragma once

#include "cuda/attention/hopper_traits.cuh"
#include "cuda/attention/kernel.cuh"
#include "cuda/device/ptx/wgmma.cuh"

namespace lampo::cuda {

/// K or V of a sequence and KV head as boxes: a box has the rows of a page, or 128 of them, and a
/// line of each. A warp copies a key tile; a lane has a box.
template <class Traits>
class BoxCopier {
 public:
  __device__ BoxCopier(const AttentionArguments& a, const Work& work)
      : a_(a),
        work_(work),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        box_rows_(min(1 << a.page_shift, Traits::kKeys)),
        row_(lane_ / Traits::kHalves * box_rows_),
        pages_(a.p.page_table + work.at.seq * a.p.stride_page_table_seq) {}

  /// Finds the lane's box of a key tile. A box without a key that some row sees has a page that
  /// does not exist: TMA writes zeros, and nobody reads the page table.
  __device__ void find(int key_tile) {
    first_key_ = key_tile * Traits::kKeys;
    const int key = first_key_ + row_;
    const Range seen = work_.tile.keys;
    page_ = key < seen.end && key + box_rows_ > seen.begin
                ? max(min(pages_[key >> a_.page_shift], a_.last_page), 0)
                : a_.last_page + 1;
  }

  __device__ void copy(const CUtensorMap& map, uint4* stage, Mbarrier& barrier) const {
    if (row_ >= Traits::kKeys) return;
    const int half = lane_ % Traits::kHalves;
    const int slot = (first_key_ + row_) & ((1 << a_.page_shift) - 1);
    copy_box(stage + half * Traits::kHalfChunks + row_ * 8, map,
             {half * 64, slot, work_.at.kv_head, page_}, barrier);
  }

  /// Whether the key tile has keys that no row sees.
  __device__ bool needs_clearing() const {
    return first_key_ < work_.tile.keys.begin || first_key_ + Traits::kKeys > work_.tile.keys.end;
  }

  /// Writes zeros over the rows of V that no row of the tile sees: their weights are 0, and 0 times
  /// a stale NaN would be NaN.
  __device__ void clear(uint4* stage) const {
    const Range seen = work_.tile.keys;
    for (int row = 0; row < Traits::kKeys; ++row) {
      if (first_key_ + row >= seen.begin && first_key_ + row < seen.end) continue;
      if (lane_ < Traits::kQChunks) stage[Traits::q_position(row, lane_)] = {0, 0, 0, 0};
    }
    fence_async_proxy();
    sync_warp();
  }

 private:
  const AttentionArguments& a_;
  const Work& work_;
  const int lane_;
  const int box_rows_;
  const int row_;  // of the lane's box, in the key tile
  const int32_t* const pages_;
  int first_key_ = 0;
  int page_ = 0;
};

/// The copying warp: fills the rings with the key tiles of all work of the block.
template <class Traits>
__device__ inline void fill_rings(const AttentionArguments& a, const CUtensorMap& k_map,
                                  const CUtensorMap& v_map, HopperStorage<Traits>& storage) {
  constexpr TileShape kShape = Traits::kLayout.shape;
  const int block = static_cast<int>(blockIdx.x);
  const Cut end = cut_of(a.p, a.plan, block + 1);
  const bool first_lane = threadIdx.x % kWarpSize == 0;
  int n = 0;           // key tiles so far
  unsigned lands = 0;  // uses of storage.landed
  for (Work work = work_at(a.p, kShape, cut_of(a.p, a.plan, block), end); work.exists;
       work = work.part.end < work.all.end
                  ? Work{}
                  : work_at(a.p, kShape, next_tile(a.p, kShape, work.at), end)) {
    BoxCopier<Traits> copier(a, work);
#pragma unroll 1
    for (int key_tile = work.part.begin; key_tile < work.part.end; ++key_tile, ++n) {
      const RingPlace<Traits::kStages> at(n);
      copier.find(key_tile);
      wait(storage.k_ring.empty[at.stage], at.parity ^ 1);
      Mbarrier& k_full = storage.k_ring.full[at.stage];
      if (first_lane) arrive_and_expect(k_full, Traits::kTileBytes);
      copier.copy(k_map, storage.k[at.stage], k_full);

      wait(storage.v_ring.empty[at.stage], at.parity ^ 1);
      Mbarrier& v_full = storage.v_ring.full[at.stage];
      const bool clears = copier.needs_clearing();
      Mbarrier& v_copied = clears ? storage.landed : v_full;
      if (first_lane) arrive_and_expect(v_copied, Traits::kTileBytes);
      copier.copy(v_map, storage.v[at.stage], v_copied);
      if (clears) {
        wait(storage.landed, lands++ % 2);
        copier.clear(storage.v[at.stage]);
        if (first_lane) arrive(v_full);
      }
    }
  }
}

/// A warpgroup's products. Those of a key tile's weights with V run while the weights of the next
/// one are computed.
template <class Traits>
class Products {
 public:
  using T = typename Traits::Element;
  using Place = RingPlace<Traits::kStages>;

  __device__ Products(WarpRows<Traits>& rows, HopperStorage<Traits>& storage)
      : rows_(rows),
        storage_(storage),
        q_(lines_along_k(storage.q + threadIdx.x / (kWarpgroupWarps * kWarpSize) * 64 * 8)) {}

  /// Starts scores = Q K^T.
  __device__ void start_scores(Place at) {
    wait(storage_.k_ring.full[at.stage], at.parity);
    const uint64_t k = lines_along_k(storage_.k[at.stage]);
    settle(rows_.scores()[0]);
    fence_products();
#pragma unroll
    for (int step = 0; step < Traits::kHeadDim / 16; ++step) {
      const int offset = step / 4 * kHalfBytes + step % 4 * 32;
      multiply_add_shared<T>(rows_.scores()[0], moved(q_, offset), moved(k, offset), step > 0);
    }
    commit_products();
  }

  /// Starts acc += weights V.
  __device__ void start_values(Place at) {
    wait(storage_.v_ring.full[at.stage], at.parity);
    const uint64_t v = lines_along_columns(storage_.v[at.stage], kHalfBytes);
    settle(rows_.accumulators()[0]);
    settle(weights_);
    fence_products();
#pragma unroll
    for (int step = 0; step < Traits::kKeys / 16; ++step) {
      multiply_add_registers<T>(rows_.accumulators()[0], weights_[step], moved(v, step * 16 * 128));
    }
    commit_products();
  }

  /// Makes weights of complete scores. All earlier products are complete then.
  __device__ void weigh(int key_tile) {
    settle(rows_.scores()[0]);
    rows_.weigh(key_tile);
    const auto& scores = rows_.scores()[0];
#pragma unroll
    for (int step = 0; step < Traits::kKeys / 16; ++step) {
      const auto& low = scores[2 * step].value;
      const auto& high = scores[2 * step + 1].value;
      weights_[step] = {{pack<T>(low[0], low[1]), pack<T>(low[2], low[3]),
                         pack<T>(high[0], high[1]), pack<T>(high[2], high[3])}};
    }
  }

  /// This warp no longer reads a stage.
  __device__ void release(RingBarriers<Traits>& ring, Place at) {
    if (threadIdx.x % kWarpSize == 0) arrive(ring.empty[at.stage]);
  }

 private:
  static constexpr int kHalfBytes = Traits::kHalfChunks * kVectorBytes;

  WarpRows<Traits>& rows_;
  HopperStorage<Traits>& storage_;
  const uint64_t q_;
  FragmentA weights_[Traits::kKeys / 16];
};

/// Adds absolute key tiles [begin, end) to `rows`; n: key tiles of the block before them.
template <class Traits>
__device__ inline void attend_tiles(WarpRows<Traits>& rows, HopperStorage<Traits>& storage,
                                    int begin, int end, int n) {
  using Place = RingPlace<Traits::kStages>;
  if (begin >= end) return;
  Products<Traits> products(rows, storage);
  products.start_scores(Place(n));
  wait_products<0>();
  products.release(storage.k_ring, Place(n));
  products.weigh(begin);
#pragma unroll 1
  for (int key_tile = begin + 1; key_tile < end; ++key_tile, ++n) {
    products.start_scores(Place(n + 1));
    products.start_values(Place(n));
    wait_products<1>();
    products.release(storage.k_ring, Place(n + 1));
    products.weigh(key_tile);
    products.release(storage.v_ring, Place(n));
  }
  products.start_values(Place(n));
  Traits::wait_for(rows.accumulators()[0]);
  products.release(storage.v_ring, Place(n));
}

/// The warps with rows: 16 rows each of all work of the block.
template <class Traits>
__device__ inline void attend_rows(const AttentionArguments& a, HopperStorage<Traits>& storage) {
  const PagedAttentionParams& p = a.p;
  const Plan& plan = a.plan;
  const Work& work = storage.work;
  constexpr TileShape kShape = Traits::kLayout.shape;
  const int block = static_cast<int>(blockIdx.x);
  int n = 0;  // key tiles so far
  if (threadIdx.x == 0) {
    storage.work = work_at(p, kShape, cut_of(p, plan, block), cut_of(p, plan, block + 1));
  }
  Traits::sync_warps();
  while (work.exists) {
    WarpRows<Traits> rows(a, work);
    load_queries<Traits>(a, work, storage.q);
    fence_async_proxy();
    Traits::sync_warps();
    rows.clear();
    attend_tiles(rows, storage, work.part.begin, work.part.end, n);
    n += max(work.part.end - work.part.begin, 0);
    rows.close();
    const bool shared = work.at.key_tile > 0 || work.part.end < work.all.end;
    rows.write(storage.rows, kNowhere,
               shared ? rows_of_part(plan, block, work.at.key_tile) : kNowhere);
    Traits::sync_warps();  // before the memory is reused
    if (threadIdx.x == 0) storage.merges = completes_tile(plan, work, block);
    Traits::sync_warps();
    if (storage.merges) {
      merge_parts<typename Traits::Element, Traits::kWarps>(a, work, block);
      Traits::sync_warps();
    }
    if (threadIdx.x == 0) {
      // A cut within this tile ends the work.
      storage.work =
          work.part.end < work.all.end
              ? Work{}
              : work_at(p, kShape, next_tile(p, kShape, work.at), cut_of(p, plan, block + 1));
    }
    Traits::sync_warps();
  }
}

/// Block b computes the work between cuts b and b + 1. Two warpgroups have rows; of the third one
/// warp copies K and V. It is empty but for sm_90a.
template <class Traits>
__global__ void __launch_bounds__(Traits::kBlockThreads, 1)
    paged_attention_hopper_kernel(const __grid_constant__ AttentionArguments a,
                                  const __grid_constant__ CUtensorMap k_map,
                                  const __grid_constant__ CUtensorMap v_map) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  wait_for_stream();
  auto& storage = shared_storage<HopperStorage<Traits>>();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Traits::kStages; ++stage) {
      for (RingBarriers<Traits>* ring : {&storage.k_ring, &storage.v_ring}) {
        init_mbarrier(ring->full[stage], 1);
        init_mbarrier(ring->empty[stage], Traits::kWarps);
      }
    }
    init_mbarrier(storage.landed, 1);
    fence_async_proxy();
  }
  sync_block();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  if (warp < Traits::kWarps) {
    take_registers<232>();
    attend_rows<Traits>(a, storage);
  } else {
    give_registers<40>();
    if (warp == Traits::kWarps) fill_rings<Traits>(a, k_map, v_map, storage);
  }
#endif
}

}  // namespace lampo::cuda
