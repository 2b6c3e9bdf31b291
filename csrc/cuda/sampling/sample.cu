// SPDX-License-Identifier: Apache-2.0
// From rows of logits to tokens: common/sampling.h says what, to the bit; this says how. The twin
// of cpu/sampling/sample.cpp, which chooses the very same tokens.
//
// A row is shared by `parts` CUDA blocks (sample_plan.h), a warp takes 256 tokens at a time, 8 a
// lane. A fixed sequence of passes, which share the workspace and need nothing of the host. For few
// rows they are one launch, with a cluster of blocks for each row, else a launch each:
//   edit       rows with penalties, bias or a mask are copied and edited, in a launch of its own;
//              others are never copied
//   maxima     of every 256 tokens, and of the row
//   histogram  mass (and number) of tokens in 2048 buckets of (max - l): in shared memory, by
//              integer atomics, then to the row's; only where top-k or top-p asks for it
//   gather     every block finds the buckets of the cuts in the histogram; tokens above them are
//              kept and summed by 256, those inside are listed (a few hundred of 128256)
//   draw       a CUDA block a row: the exact cut in the list (sample_row.cuh), the draw of
//              a block, then of one of its tokens
//   mark       writes what is kept, where it is wanted: mask, number, log-probabilities
// and with logprobs raw_mass: the mass of the row as it came. All sums are integers, so the number
// of parts, the order of atomics and of the list do not show. A list that overflows (more than 4096
// tokens of one bucket: thousands of equal logits, very high temperatures) is not used: draw reads
// the row again, by itself, which is slow and exact.
//
// Bytes: a row three times, twice where nothing is filtered; the first time from memory, then from
// L2 where the batch fits it. Floors at 4.3 TB/s (an H200's measured copy rate) for one pass over
// float32 of 128256 tokens: 1 row 0.1 us, 64 rows 8 us, 512 rows 61 us. By the instructions in the
// loops (benchmarks/gpu_model.py), in which a mass has 25, maxima need 29 % of that time, histogram
// 130 %, and gather from 13 % where it skips all blocks of 256 to 176 % where all tokens are kept.
// Expected: 1 row 12 us; 64 rows about 35 us; 512 rows 150 us, or up to 250 where most tokens are
// kept: nothing keeps rows on the chip from pass to pass.
//
// Limits: top_p, min_p, top_k out of their range mean the nearest that is in it, a temperature that
// is not positive means 0; ids and offsets of lists out of range are skipped. The ids of one list
// of a row must differ. Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and run
// on the CPU (tests/cuda_on_cpu/). Not tried: clusters of 16, which some GPUs allow; rows that stay
// in shared memory over all passes.
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/device/ptx/cluster.cuh"
#include "cuda/elementwise/row_passes.cuh"
#include "cuda/runtime/device_limits.h"
#include "cuda/sampling/sample_row.cuh"

namespace lampo::cuda {
namespace {

/// Calls fn(id, j) for a row's entries j of a list, shared out over the block's threads.
template <class Fn>
__device__ inline void for_entries(const RaggedIds& list, int64_t b, Fn&& fn) {
  if (list.ids == nullptr) return;
  const int64_t end = min(int64_t{list.cu[b + 1]}, list.size);
  for (int64_t j = max(int64_t{list.cu[b]}, int64_t{0}) + threadIdx.x; j < end;
       j += kSampleThreads) {
    fn(list.ids[j], j);
  }
}

/// Step (1), into the row's copy. A masked token stays -inf whatever is added to it.
template <class In>
__device__ inline void edit_part(const SampleParams& p, const SampleWork& work,
                                 const RowPart& part) {
  const int64_t b = part.row;
  const LogitRow<In> raw = {static_cast<const In*>(p.logits) + b * p.stride_logits_row,
                            p.vocab_size};
  float* out = work.scratch(b).copy;
  const int64_t begin = part.begin * kSampleBlock;
  const int64_t end = min(part.end * kSampleBlock, p.vocab_size);
  const int32_t* mask =
      p.allowed_mask != nullptr ? p.allowed_mask + b * p.stride_mask_row : nullptr;
  for (int64_t i = begin + threadIdx.x; i < end; i += kSampleThreads) {
    const bool allowed = mask == nullptr || (static_cast<uint32_t>(mask[i / 32]) >> i % 32 & 1);
    out[i] = allowed ? raw.at(i) : minus_infinity();
  }
  const auto store = [&](int64_t id, float l) { out[id] = l == l ? l : minus_infinity(); };
  sync_block();
  for_entries(p.penalties, b, [&](int64_t id, int64_t j) {
    if (id < begin || id >= end) return;
    store(id, penalize(out[id], p.penalty_counts[j],
                       p.repetition_penalty != nullptr ? p.repetition_penalty[b] : 1.0f,
                       p.presence_penalty != nullptr ? p.presence_penalty[b] : 0.0f,
                       p.frequency_penalty != nullptr ? p.frequency_penalty[b] : 0.0f));
  });
  sync_block();
  for_entries(p.bias, b, [&](int64_t id, int64_t j) {
    if (id >= begin && id < end) store(id, add_rn(out[id], p.bias_values[j]));
  });
}

template <class In>
__global__ void __launch_bounds__(kSampleThreads)
    edit_kernel(const __grid_constant__ SampleParams p, const __grid_constant__ SampleWork work) {
  for_each_part(work, [&](const RowPart& part) { edit_part<In>(p, work, part); });
}

struct HistogramStorage {
  WeightHistogram mass;
  unsigned count[kBuckets];
};
static_assert(kBuckets == kRadixBins);

template <class E>
__device__ inline void add_to_histogram(const SampleParams& p, const SampleWork& work,
                                        const Rows<E>& rows, const RowPart& part) {
  auto& shared = shared_storage<HistogramStorage>();
  const int thread = static_cast<int>(threadIdx.x);
  const RowFilters f = filters_of(p, part.row);
  const RowScratch scratch = work.scratch(part.row);
  const ProcessedRow<E> row = processed_row(work, rows, part.row, f);
  if (f.temperature == 0.0f || row.max == minus_infinity() || !f.cuts(p.vocab_size)) return;
  const bool counts = f.top_k < p.vocab_size;
  shared.mass.clear(thread, kSampleThreads);
  for (int bin = thread; bin < kBuckets; bin += kSampleThreads) shared.count[bin] = 0;
  sync_block();
  part.for_blocks([&](int64_t block) {
    const LaneTokens tokens = row.logits.template load_block<true>(block);
    int bin[kTokensPerLane];
    Weight mass[kTokensPerLane];
#pragma unroll
    for (int j = 0; j < kTokensPerLane; ++j) {
      const float exponent = row.mass.exponent(tokens.l[j]);
      bin[j] = static_cast<int>(row.mass.place(exponent, kBuckets));
      mass[j] = round_to_u64(exp2_times_2_40(exponent));
    }
    shared.mass.add_all(bin, mass);
    if (!counts) return;
#pragma unroll
    for (int j = 0; j < kTokensPerLane; ++j) {
      if (tokens.l[j] > minus_infinity()) atomicAdd(&shared.count[bin[j]], 1u);
    }
  });
  sync_block();
  for (int bin = thread; bin < kBuckets; bin += kSampleThreads) {
    if (const Weight mass = shared.mass(bin); mass != 0) {
      atomicAdd(&scratch.bucket_mass[bin], mass);
    }
    if (shared.count[bin] != 0) atomicAdd(&scratch.bucket_count[bin], shared.count[bin]);
  }
}

template <class E>
__global__ void __launch_bounds__(kSampleThreads)
    histogram_kernel(const __grid_constant__ SampleParams p,
                     const __grid_constant__ SampleWork work, Rows<E> rows) {
  for_each_part(work, [&](const RowPart& part) { add_to_histogram(p, work, rows, part); });
}

/// Appends the tokens of a warp's block that `bits` says, in any order.
__device__ inline void append_to_list(const RowScratch& scratch, const LaneTokens& tokens,
                                      unsigned bits) {
  if (!warp_any(bits != 0)) return;
  const auto count = static_cast<unsigned>(count_bits(bits));
  const unsigned upto = warp_prefix_sum(count);
  unsigned base = 0;
  if (threadIdx.x % kWarpSize == kWarpSize - 1) base = atomicAdd(&scratch.state->list_size, upto);
  unsigned at = shuffle(base, kWarpSize - 1) + upto - count;
#pragma unroll
  for (int j = 0; j < kTokensPerLane; ++j) {
    if ((bits >> j & 1) == 0) continue;
    if (at < kListCapacity) {
      scratch.list_value[at] = tokens.l[j];
      scratch.list_id[at] = static_cast<int32_t>(tokens.token(j));
    }
    ++at;
  }
}

template <class E>
__device__ inline void gather(const SampleParams& p, const SampleWork& work, const Rows<E>& rows,
                              const RowPart& part) {
  const RowFilters f = filters_of(p, part.row);
  const RowScratch scratch = work.scratch(part.row);
  const ProcessedRow<E> row = processed_row(work, rows, part.row, f);
  if (f.temperature == 0.0f || row.max == minus_infinity()) return;
  Cuts cuts;
  if (f.cuts(p.vocab_size)) {
    cuts = find_cuts(f, p.vocab_size, scratch, shared_storage<SelectStorage>());
  }
  if (part.part == 0 && threadIdx.x == 0) {
    SampleRowState& state = *scratch.state;
    state.k_bucket = cuts.k_bucket;
    state.p_first = cuts.p_first;
    state.p_last = cuts.p_last;
    state.k_missing = cuts.k_missing;
    state.mass_above_k = cuts.mass_above_k;
    state.mass_above_p = cuts.mass_above_p;
  }
  const CutPlaces places(cuts);
  part.for_blocks([&](int64_t block) {
    const float largest = flattened(scratch.block_max[block], row.logits.infinite);
    Weight sum = 0;
    if (largest > minus_infinity() && row.mass.bucket(largest, kBuckets) <= cuts.last()) {
      const LaneTokens tokens = row.logits.template load_block<true>(block);
      float exponent[kTokensPerLane];
      unsigned listed = 0;
      float foremost = places.first;
#pragma unroll
      for (int j = 0; j < kTokensPerLane; ++j) {
        exponent[j] = row.mass.exponent(tokens.l[j]);
        const float place = row.mass.place(exponent[j], kBuckets);
        foremost = fminf(foremost, place);
        const bool here = places.listed(place) & (tokens.l[j] > minus_infinity());
        listed |= here ? 1u << j : 0;
      }
      append_to_list(scratch, tokens, listed);
      if (warp_any(foremost < places.first)) {
#pragma unroll
        for (int j = 0; j < kTokensPerLane; ++j) {
          const float mass = exp2_times_2_40(exponent[j]);
          const bool here =
              (row.mass.place(exponent[j], kBuckets) < places.first) & (mass >= f.min_mass);
          sum += round_to_u64(here ? mass : 0.0f);
        }
        for (int mask = kWarpSize / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
      }
    }
    if (lane_leads()) scratch.block_mass[block] = sum;
  });
}

template <class E>
__global__ void __launch_bounds__(kSampleThreads)
    gather_kernel(const __grid_constant__ SampleParams p, const __grid_constant__ SampleWork work,
                  Rows<E> rows) {
  for_each_part(work, [&](const RowPart& part) { gather(p, work, rows, part); });
}

template <class E>
__device__ inline void draw_row(const SampleParams& p, const SampleWork& work, const Rows<E>& rows,
                                int64_t b) {
  const RowFilters f = filters_of(p, b);
  const RowScratch scratch = work.scratch(b);
  const ProcessedRow<E> row = processed_row(work, rows, b, f);
  const SampleRowState& state = *scratch.state;
  const RowDraw<E> rd = {work,
                         scratch,
                         row,
                         f,
                         {state.k_bucket, state.p_first, state.p_last, state.k_missing,
                          state.mass_above_k, state.mass_above_p},
                         shared_storage<SelectStorage>()};
  typename RowDraw<E>::Drawn drawn = {-1, 0.0f};
  if (row.max > minus_infinity()) {
    drawn = f.temperature == 0.0f
                ? rd.take_largest()
                : rd.draw(p.seeds[b], p.positions != nullptr ? p.positions[b] : 0);
  }
  sync_block();
  if (threadIdx.x == 0) {
    p.token_ids[b] = drawn.token;
    p.status[b] = drawn.token >= 0 ? kSampleOk : kSampleNoCandidate;
    if (drawn.token < 0) scratch.state->kept_value = __builtin_huge_valf();  // nothing
    if (p.num_kept != nullptr) p.num_kept[b] = 0;  // the next kernel adds to it
    if (p.logprobs != nullptr) {
      const auto raw_at = [&](int64_t token) {
        const int64_t at = b * p.stride_logits_row + token;
        const float l = p.dtype == DType::kF32 ? static_cast<const float*>(p.logits)[at]
                                               : to_float(static_cast<const BF16*>(p.logits)[at]);
        return l == l ? l : minus_infinity();
      };
      const float nan = __builtin_nanf("");
      p.logprobs[2 * b] = drawn.token >= 0 ? raw_logprob(work, scratch)(raw_at(drawn.token)) : nan;
      p.logprobs[2 * b + 1] = drawn.token >= 0 ? drawn.logprob : nan;
    }
  }
  sync_block();
}

template <class E>
__global__ void __launch_bounds__(kSampleThreads)
    draw_kernel(const __grid_constant__ SampleParams p, const __grid_constant__ SampleWork work,
                Rows<E> rows) {
  wait_for_stream();
  for (int64_t b = blockIdx.x; b < work.num_rows; b += gridDim.x) draw_row(p, work, rows, b);
}

template <class E>
__device__ inline void mark(const SampleParams& p, const SampleWork& work, const Rows<E>& rows,
                            const RowPart& part) {
  const RowFilters f = filters_of(p, part.row);
  const ProcessedRow<E> row = processed_row(work, rows, part.row, f);
  SampleRowState kept = *work.scratch(part.row).state;
  if (kept.kept_value == __builtin_huge_valf()) kept.kept_last = -1;
  const float temperature = f.temperature > 0.0f ? f.temperature : 1.0f;
  Weight count = 0;
  part.for_blocks([&](int64_t block) {
    const LaneTokens tokens = row.logits.load_block(block);
#pragma unroll
    for (int j = 0; j < kTokensPerLane; ++j) {
      const int64_t token = tokens.token(j);
      if (token >= work.vocab_size) continue;
      const float l = tokens.l[j];
      const bool here = RowDraw<E>::is_kept(kept, l, row.mass(l), token);
      count += here ? 1 : 0;
      if (p.kept != nullptr) p.kept[part.row * p.stride_kept_row + token] = here ? 1 : 0;
      if (p.processed_logprobs != nullptr) {
        p.processed_logprobs[part.row * p.stride_processed_row + token] =
            here ? processed_logprob(l, row.max, temperature, kept.log_mass) : minus_infinity();
      }
    }
  });
  if (p.num_kept == nullptr) return;
  count = block_fold(count, Sum{}, shared_storage<MassStorage>().sums);
  if (threadIdx.x == 0) {
    atomicAdd(reinterpret_cast<unsigned*>(p.num_kept + part.row), static_cast<unsigned>(count));
  }
}

template <class E>
__global__ void __launch_bounds__(kSampleThreads)
    mark_kernel(const __grid_constant__ SampleParams p, const __grid_constant__ SampleWork work,
                Rows<E> rows) {
  for_each_part(work, [&](const RowPart& part) { mark(p, work, rows, part); });
}

/// Shared memory of the passes, one after the other, and the row of the cluster.
struct ClusterStorage {
  union {
    MaximaStorage maxima;
    HistogramStorage histogram;
    SelectStorage select;
    MassStorage mass;
  };
  int64_t row;
};

/// All passes over a row by a cluster, a block for each part. `raw_mass`: of these rows, which are
/// as they came. The row's number is read again by each pass, so that no register needs to hold
/// what an earlier pass has computed from it. One block on a multiprocessor: without that bound
/// ptxas gives it 64 registers, and spills.
template <class E>
__global__ void __launch_bounds__(kSampleThreads, 1)
    cluster_kernel(const __grid_constant__ SampleParams p, const __grid_constant__ SampleWork work,
                   Rows<E> rows, bool raw_mass, bool marks) {
  int64_t& row = shared_storage<ClusterStorage>().row;
  const auto part = [&] {
    return part_of(work, row, static_cast<int>(blockIdx.x) % kClusterParts);
  };
  wait_for_stream();
  if (threadIdx.x == 0) row = blockIdx.x / kClusterParts;
  sync_block();
  while (row < work.num_rows) {
    find_maxima(work, rows, part(), work.layout.part_max, work.layout.block_max, true);
    sync_cluster();
    if (raw_mass) {
      sum_raw_masses(work, rows, part());
      sync_block();
    }
    if (p.top_k != nullptr || p.top_p != nullptr) {
      add_to_histogram(p, work, rows, part());
      sync_cluster();
    }
    gather(p, work, rows, part());
    sync_cluster();
    if (blockIdx.x % kClusterParts == 0) draw_row(p, work, rows, row);
    if (marks) {
      sync_cluster();
      mark(p, work, rows, part());
    }
    sync_block();  // shared memory is free again
    if (threadIdx.x == 0) row += gridDim.x / kClusterParts;
    sync_block();
  }
}

bool wants_marks(const SampleParams& p) {
  return p.kept != nullptr || p.num_kept != nullptr || p.processed_logprobs != nullptr;
}

/// Arguments that all launches of a batch share.
struct Batch {
  const SampleParams& p;
  const SampleWork& work;
  bool in_clusters;
  int device;
  Stream stream;

  Launch by_row(size_t shared_bytes) const {
    return launch_of("sample", work.num_rows, shared_bytes, device, stream);
  }
  Launch by_part(size_t shared_bytes) const {
    return launch_of("sample", work.num_rows * work.parts, shared_bytes, device, stream);
  }
};

/// Raw logits: their maxima, if the passes have not found them, and masses.
template <class E>
void sum_raw(const Batch& batch, const Rows<E>& raw, bool maxima) {
  const SampleLayout& layout = batch.work.layout;
  if (maxima) {
    launch(batch.by_part(sizeof(MaximaStorage)), maxima_kernel<E>, batch.work, raw,
           layout.raw_part_max, layout.raw_block_max, false);
  }
  launch(batch.by_part(sizeof(MassStorage)), raw_mass_kernel<E>, batch.work, raw);
}

/// Steps (2) to (6), of few rows. raw_mass: of these rows.
template <class E>
void draw_in_clusters(const Batch& batch, const Rows<E>& rows, bool raw_mass) {
  Launch at = batch.by_part(sizeof(ClusterStorage));
  at.cluster = kClusterParts;
  launch(at, cluster_kernel<E>, batch.p, batch.work, rows, raw_mass, wants_marks(batch.p));
}

/// The same of any number of rows, a launch for each pass.
template <class E>
void draw_by_passes(const Batch& batch, const Rows<E>& rows, bool raw_mass) {
  const SampleParams& p = batch.p;
  const SampleWork& work = batch.work;
  launch(batch.by_part(sizeof(MaximaStorage)), maxima_kernel<E>, work, rows, work.layout.part_max,
         work.layout.block_max, true);
  if (p.top_k != nullptr || p.top_p != nullptr) {
    launch(batch.by_part(sizeof(HistogramStorage)), histogram_kernel<E>, p, work, rows);
  }
  launch(batch.by_part(sizeof(SelectStorage)), gather_kernel<E>, p, work, rows);
  if (raw_mass) sum_raw(batch, rows, false);
  launch(batch.by_row(sizeof(SelectStorage)), draw_kernel<E>, p, work, rows);
  if (wants_marks(p)) launch(batch.by_part(sizeof(MassStorage)), mark_kernel<E>, p, work, rows);
}

template <class E>
void draw_tokens(const Batch& batch, const Rows<E>& rows, bool raw_mass) {
  if (batch.in_clusters) {
    draw_in_clusters(batch, rows, raw_mass);
  } else {
    draw_by_passes(batch, rows, raw_mass);
  }
}

template <class In>
void run(const SampleParams& p, bool edited, int num_sms, int device, Stream stream) {
  const auto has_clusters = [&] {
    const DeviceGuard guard("sample", device);
    return kernel_arch(reinterpret_cast<const void*>(cluster_kernel<In>), "sample", device) >= 90;
  };
  const bool in_clusters = takes_clusters(p.batch_size, num_sms) && has_clusters();
  const int parts = in_clusters ? kClusterParts : choose_parts(p.batch_size, p.vocab_size, num_sms);
  SampleWork work = plan_work(p.workspace, p.batch_size, p.vocab_size, edited, parts);
  if (!edited) work.layout.raw_part_max = work.layout.part_max;  // one and the same
  const Batch batch = {p, work, in_clusters, device, stream};
  const Rows<In> raw = {static_cast<const In*>(p.logits), p.stride_logits_row};
  const bool raw_mass = p.logprobs != nullptr;
  if (!edited) return draw_tokens(batch, raw, raw_mass);
  launch(batch.by_part(0), edit_kernel<In>, p, work);
  if (raw_mass) sum_raw(batch, raw, true);
  const Rows<float> copy = {reinterpret_cast<const float*>(work.base + work.layout.copy),
                            work.layout.bytes / static_cast<int64_t>(sizeof(float))};
  draw_tokens(batch, copy, false);
}

/// The rows from `first` on as a batch of their own.
SampleParams rows_of(const SampleParams& p, int64_t first, int64_t count) {
  SampleParams part = p;
  part.batch_size = count;
  const auto move = [first](auto*& pointer, int64_t stride) {
    if (pointer != nullptr) pointer += first * stride;
  };
  const char* logits = static_cast<const char*>(p.logits);
  part.logits = logits + first * p.stride_logits_row * size_of(p.dtype);
  move(part.temperature, 1);
  move(part.top_k, 1);
  move(part.top_p, 1);
  move(part.min_p, 1);
  move(part.seeds, 1);
  move(part.positions, 1);
  move(part.penalties.cu, 1);
  move(part.repetition_penalty, 1);
  move(part.presence_penalty, 1);
  move(part.frequency_penalty, 1);
  move(part.bias.cu, 1);
  move(part.allowed_mask, p.stride_mask_row);
  move(part.token_ids, 1);
  move(part.status, 1);
  move(part.logprobs, 2);
  move(part.kept, p.stride_kept_row);
  move(part.num_kept, 1);
  move(part.processed_logprobs, p.stride_processed_row);
  return part;
}

}  // namespace

int64_t sampling_workspace_size(int64_t vocab_size, int64_t batch_size) {
  return sample_workspace_bytes(batch_size, vocab_size);
}

void sample(const SampleParams& p, int device, Stream stream) {
  const int num_sms = device_limits("sample", device).num_sms;
  const bool edited =
      p.penalties.ids != nullptr || p.bias.ids != nullptr || p.allowed_mask != nullptr;
  const int64_t most = edited ? rows_at_once(p.batch_size, p.vocab_size)
                              : raw_rows_at_once(p.batch_size, p.vocab_size, size_of(p.dtype));
  for (int64_t first = 0; first < p.batch_size; first += most) {
    const int64_t count = p.batch_size - first < most ? p.batch_size - first : most;
    const SampleParams rows = rows_of(p, first, count);
    dispatch_dtype<float, BF16>(
        p.dtype, [&]<class In>() { run<In>(rows, edited, num_sms, device, stream); });
  }
}

}  // namespace lampo::cuda
