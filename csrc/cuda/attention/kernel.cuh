// SPDX-License-Identifier: Apache-2.0
// The paged attention kernel for mma.sync, sm_80 and later. Its formula and the division of work:
// paged_attention.cu.
#pragma once

#include "cuda/attention/kv_copier.cuh"
#include "cuda/attention/merge.cuh"
#include "cuda/attention/products.cuh"
#include "cuda/attention/softmax_state.cuh"
#include "cuda/device/block.cuh"
#include "cuda/device/ptx/stream.cuh"

namespace lampo::cuda {

/// A warp's rows of a tile: their states and accumulators.
template <class Traits>
class WarpRows {
 public:
  using T = typename Traits::Element;

  __device__ WarpRows(const AttentionArguments& a, const Work& work)
      : a_(a),
        work_(work),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize),
        first_row_(Traits::kSplitKeys ? 0 : warp_ * 16 * Traits::kRowBlocks),
        first_key_(Traits::kSplitKeys ? warp_ * Traits::kWarpKeys : 0) {
    const int first = work.tile.row_begin + first_row_;
    int last = first + 16 * Traits::kRowBlocks;
    if (last > work.tile.row_end) last = work.tile.row_end;
    if (first < last) {
      const int begin = position_of(first), end = position_of(last - 1);
      seen_by_any_ = keys_seen_by_any(a.p.mask, begin, end, work.sequence.seq_len);
      seen_by_all_ = keys_seen_by_all(a.p.mask, begin, end, work.sequence.seq_len);
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < Traits::kRowBlocks; ++m) {
      state_[m][0] = state_[m][1] = {minus_infinity(), 0.0f};
#pragma unroll
      for (int n = 0; n < Traits::kHeadDim / 8; ++n) acc_[m][n] = {};
    }
  }

  /// Whether any of the rows sees any of the warp's keys of a key tile.
  __device__ bool sees(int key_tile) const {
    const int begin = key_tile * Traits::kKeys + first_key_;
    return begin < seen_by_any_.end && begin + Traits::kWarpKeys > seen_by_any_.begin;
  }

  /// Computes the unnormalised weights of a key tile and updates the states.
  __device__ void score(const uint4* q, const KvStage<Traits>& stage, int key_tile) {
    multiply_q_k<Traits>(scores_, q, first_row_, stage.k, first_key_, lane_);
    if constexpr (Traits::kCacheBytes == 1) {
      if (a_.p.k_scale != nullptr) scale_columns(stage.k_scale);
    }
    weigh(key_tile);
  }

  /// Scores become weights: the part of score() after Q K^T and the scales of K.
  __device__ void weigh(int key_tile) {
    if (a_.cap_inner != 0.0f) cap_scores();
    const int begin = key_tile * Traits::kKeys + first_key_;
    if (begin < seen_by_all_.begin || begin + Traits::kWarpKeys > seen_by_all_.end) mask(begin);
    update_states();
  }

  __device__ Scores<Traits>& scores() { return scores_; }
  __device__ Accumulators<Traits>& accumulators() { return acc_; }

  __device__ void add_values(const KvStage<Traits>& stage) {
    if constexpr (Traits::kCacheBytes == 1) {
      if (a_.p.v_scale != nullptr) scale_columns(stage.v_scale);
    }
    multiply_p_v<Traits>(acc_, scores_, stage.v, first_key_, lane_);
  }

  /// Completes the states: adds the four lanes' parts of sums, converts maxima to base-2 units.
  __device__ void close() {
    const float factor = a_.score_factor;
#pragma unroll
    for (int m = 0; m < Traits::kRowBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        RowState& state = state_[m][half];
        state.l += shuffle_xor(state.l, 1);
        state.l += shuffle_xor(state.l, 2);
        state.m *= factor;
      }
    }
  }

  /// Writes the rows to the plan's partial states from row `partial` on; to out if it is kNowhere.
  /// First folds in the states from row `earlier` on, unless it is kNowhere.
  __device__ void write(RowStorage<Traits>& storage, int64_t earlier, int64_t partial) {
    Traits::sync_warps();  // the stages, in the same memory, have been read
#pragma unroll
    for (int m = 0; m < Traits::kRowBlocks; ++m) {
      store_rows<Traits>(storage.acc[warp_], acc_[m], lane_);
      if (lane_ % 4 == 0) {
        storage.state[warp_][lane_ / 4] = state_[m][0];
        storage.state[warp_][8 + lane_ / 4] = state_[m][1];
      }
      sync_rows();
      write_rows(storage, first_row_ + 16 * m, earlier, partial);
      sync_rows();
    }
  }

 private:
  static constexpr int kPer = 4;  // dims per write of a thread

  __device__ int position_of(int row) const {
    return work_.sequence.position(row / group_size_of(a_.p));
  }
  /// The warp's row of a lane's elements 0 and 1 (half = 0) or 2 and 3 (half = 1).
  __device__ int row_of(int m, int half) const { return 16 * m + 8 * half + lane_ / 4; }

  template <class Fn>
  __device__ void for_each_score(Fn&& fn) {
#pragma unroll
    for (int m = 0; m < Traits::kRowBlocks; ++m) {
#pragma unroll
      for (int n = 0; n < Traits::kWarpKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) fn(scores_[m][n].value[i], m, i / 2, 8 * n + i % 2);
      }
    }
  }

  __device__ void scale_columns(const float* scale) {
#pragma unroll
    for (int n = 0; n < Traits::kWarpKeys / 8; ++n) {
      const auto pair = load_vector<float, 2>(scale + first_key_ + 8 * n + lane_ % 4 * 2);
#pragma unroll
      for (int m = 0; m < Traits::kRowBlocks; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scores_[m][n].value[i] *= pair.value[i % 2];
      }
    }
  }

  /// tanh(x) = 1 - 2 / (1 + e^2x): absolute error of a number near 1.
  __device__ void cap_scores() {
    const float exponent = 2.0f * kLog2E * a_.cap_inner;
    for_each_score([&](float& score, int, int, int) {
      const float part = reciprocal(1.0f + exp2_approximate(score * exponent));
      score = a_.cap_outer * fmaf(-2.0f, part, 1.0f);
    });
  }

  __device__ void mask(int first_key) {
    Range seen[Traits::kRowBlocks][2];
#pragma unroll
    for (int m = 0; m < Traits::kRowBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = work_.tile.row_begin + first_row_ + row_of(m, half);
        seen[m][half] = visible_keys(a_.p.mask, position_of(row), work_.sequence.seq_len);
      }
    }
    first_key += lane_ % 4 * 2;
    for_each_score([&](float& score, int m, int half, int column) {
      const int key = first_key + column;
      if (key < seen[m][half].begin || key >= seen[m][half].end) score = minus_infinity();
    });
  }

  __device__ void update_states() {
    const float factor = a_.score_factor;
    float shift[Traits::kRowBlocks][2], scale[Traits::kRowBlocks][2];
    bool grown = false;
#pragma unroll
    for (int m = 0; m < Traits::kRowBlocks; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = minus_infinity();
#pragma unroll
        for (int n = 0; n < Traits::kWarpKeys / 8; ++n) {
          const auto& value = scores_[m][n].value;
          largest = fmaxf(largest, fmaxf(value[2 * half], value[2 * half + 1]));
        }
        largest = fmaxf(largest, shuffle_xor(largest, 1));
        largest = fmaxf(largest, shuffle_xor(largest, 2));
        RowState& state = state_[m][half];
        largest = fmaxf(largest, state.m);
        // Rows without a visible key so far get weights 0, not NaN.
        const float base = largest == minus_infinity() ? 0.0f : largest;
        shift[m][half] = base * factor;
        // Exactly 1 if the maximum stays: invisible keys do not change a row's bits.
        scale[m][half] = exp2_approximate((state.m - base) * factor);
        grown = grown || largest != state.m;
        state = {largest, state.l * scale[m][half]};
      }
    }
    const auto rescale = [&] {
      if (!warp_any(grown)) return;  // mostly: every factor is 1
#pragma unroll
      for (int m = 0; m < Traits::kRowBlocks; ++m) {
#pragma unroll
        for (int n = 0; n < Traits::kHeadDim / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) acc_[m][n].value[i] *= scale[m][i / 2];
        }
      }
    };
    if constexpr (!Traits::kAsyncProducts) rescale();
    for_each_score([&](float& score, int m, int half, int) {
      score = exp2_approximate(fmaf(score, factor, -shift[m][half]));
      state_[m][half].l += score;
    });
    if constexpr (Traits::kAsyncProducts) {
      Traits::wait_for(acc_[0]);
      rescale();
    }
  }

  /// Synchronises the warps that share rows: all of a block if they split keys, else each alone.
  __device__ static void sync_rows() {
    if constexpr (Traits::kSplitKeys) {
      sync_block();
    } else {
      sync_warp();
    }
  }

  /// The folded state of row i of 16; with kAcc also four dims of its accumulator, from `dim` on.
  template <bool kAcc>
  __device__ RowState folded(const RowStorage<Traits>& storage, int i, int64_t earlier_row, int dim,
                             Vector<float, kPer>& acc) const {
    RowState run{minus_infinity(), 0.0f};
    const auto add = [&](const RowState& state, const float* from) {
      const FoldWeights weights = fold(run, state);
      if constexpr (kAcc) {
        const auto values = load_vector<float, kPer>(from + dim);
#pragma unroll
        for (int k = 0; k < kPer; ++k) {
          acc.value[k] = fold_value(acc.value[k], values.value[k], weights);
        }
      }
    };
    acc = {};
    if (earlier_row != kNowhere) {
      add(a_.plan.states[earlier_row],
          a_.plan.accumulators + earlier_row * a_.plan.head_dim_stride);
    }
    constexpr int kParts = Traits::kSplitKeys ? Traits::kWarps : 1;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int w = Traits::kSplitKeys ? part : warp_;
      add(storage.state[w][i], storage.acc[w][i]);
    }
    return run;
  }

  /// Writes 16 rows, from row `first` of the tile on.
  __device__ void write_rows(const RowStorage<Traits>& storage, int first, int64_t earlier,
                             int64_t partial) const {
    constexpr int kVectors = Traits::kHeadDim / kPer;
    constexpr int kThreads = Traits::kSplitKeys ? Traits::kThreads : kWarpSize;
    const int thread = Traits::kSplitKeys ? warp_ * kWarpSize + lane_ : lane_;
    const auto row_of = [first](int64_t rows, int i) {
      return rows != kNowhere ? rows + first + i : kNowhere;
    };
    const int num_rows = work_.tile.row_end - work_.tile.row_begin - first;
    Vector<float, kPer> acc;
#pragma unroll 1
    for (int item = thread; item < 16 * kVectors; item += kThreads) {
      const int i = item / kVectors, dim = item % kVectors * kPer;
      if (i >= num_rows) break;
      const RowState state = folded<true>(storage, i, row_of(earlier, i), dim, acc);
      if (partial != kNowhere) {
        store_vector(a_.plan.accumulators + row_of(partial, i) * a_.plan.head_dim_stride + dim,
                     acc);
      } else {
        write_out(work_.tile.row_begin + first + i, dim, state, acc);
      }
    }
    if (partial == kNowhere) return;
    sync_rows();  // the earlier states, in the same memory, have been read
    if (thread < 16 && thread < num_rows) {
      a_.plan.states[row_of(partial, thread)] =
          folded<false>(storage, thread, row_of(earlier, thread), 0, acc);
    }
  }

  __device__ void write_out(int row, int dim, const RowState& state,
                            Vector<float, kPer> values) const {
    const PagedAttentionParams& p = a_.p;
    const int group_size = group_size_of(p);
    const int token = row / group_size;
    const int head = work_.at.kv_head * group_size + row - token * group_size;
    const int64_t in_q = work_.sequence.first_token + int64_t{token};
    const RowResult result = finish(state, p.sinks != nullptr ? p.sinks + head : nullptr);
    if (p.lse != nullptr && dim == 0) p.lse[in_q * p.stride_lse_token + head] = result.lse;
    if (dim >= p.head_dim) return;
    T* out = static_cast<T*>(p.out) + in_q * p.stride_out_token + head * p.stride_out_head + dim;
    store_out(out, values, result, a_.vector_out);
  }

  const AttentionArguments& a_;
  const Work& work_;
  const int lane_, warp_;
  const int first_row_;                          // of the warp, in the tile
  const int first_key_;                          // of the warp, in a key tile
  Range seen_by_any_{0, 0}, seen_by_all_{0, 0};  // keys that rows of the warp see
  RowState state_[Traits::kRowBlocks][2];        // m in raw scores until close()
  Scores<Traits> scores_;
  Accumulators<Traits> acc_;
};

/// Loads the queries of a tile, zeros behind the last row and the last dim.
template <class Traits>
__device__ inline void load_queries(const AttentionArguments& a, const Work& work, uint4* q) {
  using T = typename Traits::Element;
  const PagedAttentionParams& p = a.p;
  const int group_size = group_size_of(p);
  const int num_chunks = static_cast<int>(p.head_dim) / 8;
  for (int i = static_cast<int>(threadIdx.x); i < Traits::kRows * Traits::kQChunks;
       i += Traits::kThreads) {
    const int in_tile = i / Traits::kQChunks, chunk = i % Traits::kQChunks;
    const int row = work.tile.row_begin + in_tile;
    uint4 dims = {0, 0, 0, 0};
    if (row < work.tile.row_end && chunk < num_chunks) {
      const int token = row / group_size;
      const int head = work.at.kv_head * group_size + row - token * group_size;
      const T* from = static_cast<const T*>(p.q) +
                      (work.sequence.first_token + int64_t{token}) * p.stride_q_token +
                      head * p.stride_q_head + chunk * 8;
      if (a.vector_q) {
        dims = *reinterpret_cast<const uint4*>(from);
      } else {
        const auto values = load_elements<T, 8>(from, 8);
        dims = *reinterpret_cast<const uint4*>(&values);
      }
      dims = {dims.x ^ a.q_flip, dims.y ^ a.q_flip, dims.z ^ a.q_flip, dims.w ^ a.q_flip};
    }
    store_q<Traits>(q, in_tile, chunk, dims);
  }
}

/// Adds absolute key tiles [begin, end) to `rows`. K and V are copied separately, so scores do not
/// wait for V; kStages - 1 key tiles are in flight during one.
template <class Traits>
__device__ inline void attend(WarpRows<Traits>& rows, KvCopier<Traits>& copier,
                              AttentionStorage<Traits>& storage, int begin, int end) {
  constexpr int kStages = Traits::kStages;
  constexpr int kPending = 2 * (kStages - 1);  // groups younger than the awaited one
  // A warp that splits keys reads its own copies alone.
  const auto sync_copies = [] {
    wait_copies<kPending>();
    if constexpr (Traits::kSplitKeys) {
      sync_warp();
    } else {
      sync_block();
    }
  };
  const auto stage_of = [&](int key_tile) -> KvStage<Traits>& {
    return storage.stages[(key_tile - begin) & (kStages - 1)];
  };
#pragma unroll 1
  for (int key_tile = begin - (kStages - 1); key_tile < end; ++key_tile) {
    const int next = key_tile + kStages - 1;
    if (next < end) {
      copier.find_next();
      copier.copy_k(stage_of(next));
    }
    commit_copies();
    const bool arrives = key_tile >= begin;
    const bool sees = arrives && rows.sees(key_tile);
    if (arrives) sync_copies();
    if (sees) rows.score(storage.q, stage_of(key_tile), key_tile);
    if (next < end) copier.copy_v(stage_of(next));
    commit_copies();
    if (arrives) sync_copies();
    if (sees) rows.add_values(stage_of(key_tile));
  }
  wait_copies<0>();
}

/// The work at `at`, up to `stop` at most; none if `at` is `stop`.
__device__ inline Work work_at(const PagedAttentionParams& p, TileShape shape, const Cut& at,
                               const Cut& stop) {
  const bool last = at.same_tile(stop);
  Work work{};
  if (at.seq > p.batch_size || (last && at.key_tile == stop.key_tile)) return work;
  work.at = at;
  work.sequence = sequence_of(p, at.seq);
  work.tile = tile_of(p, shape, work.sequence, at.row_tile);
  work.all = key_tiles_of(shape, work.tile);
  work.part = {work.all.begin + at.key_tile, last ? work.all.begin + stop.key_tile : work.all.end};
  work.exists = true;
  return work;
}

/// Block b computes the work between cuts b and b + 1.
template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kLayout.max_blocks)
    paged_attention_kernel(const __grid_constant__ AttentionArguments a) {
  auto& storage = shared_storage<AttentionStorage<Traits>>();
  const PagedAttentionParams& p = a.p;
  const Plan& plan = a.plan;
  const Work& work = storage.work;
  constexpr TileShape kShape = Traits::kLayout.shape;
  constexpr int kSplitTiles = kSplitKeys / Traits::kKeys;
  const int block = static_cast<int>(blockIdx.x);
  wait_for_stream();
  if (threadIdx.x == 0) {
    storage.work = work_at(p, kShape, cut_of(p, plan, block), cut_of(p, plan, block + 1));
  }
  sync_block();
  while (work.exists) {
    WarpRows<Traits> rows(a, work);
    KvCopier<Traits> copier(a, work);
    load_queries<Traits>(a, work, storage.q);
    sync_block();
    const int part_end = work.part.end;
    int begin = work.part.begin;
    do {
      const int split = begin / kSplitTiles;
      int end = part_end;
      if (plan.deterministic && (split + 1) * kSplitTiles < end) end = (split + 1) * kSplitTiles;
      rows.clear();
      attend<Traits>(rows, copier, storage, begin, end);
      rows.close();
      int64_t earlier = kNowhere, partial = kNowhere;
      if (work.at.key_tile > 0 || work.part.end < work.all.end) {
        partial = plan.deterministic ? rows_of_split(plan, work.at, work.tile, split)
                                     : rows_of_part(plan, block, work.at.key_tile);
      } else if (plan.deterministic) {
        // All splits of the tile are this block's: it keeps their running state.
        if (begin > work.all.begin) earlier = rows_of_block(plan, block);
        if (end < work.all.end) partial = rows_of_block(plan, block);
      }
      rows.write(storage.rows, earlier, partial);
      sync_block();  // before the memory is reused
      begin = end;
    } while (begin < part_end);
    if (threadIdx.x == 0) storage.merges = completes_tile(plan, work, block);
    sync_block();
    if (storage.merges) {
      merge_parts<typename Traits::Element, Traits::kWarps>(a, work, block);
      sync_block();
    }
    if (threadIdx.x == 0) {
      // A cut within this tile ends the work.
      storage.work =
          work.part.end < work.all.end
              ? Work{}
              : work_at(p, kShape, next_tile(p, kShape, work.at), cut_of(p, plan, block + 1));
    }
    sync_block();
  }
}

}  // namespace lampo::cuda
