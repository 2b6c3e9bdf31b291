// SPDX-License-Identifier: Apache-2.0
// Per row of raw logits: the log-softmax at one token, that token's rank, and the most likely
// tokens with theirs. The twin of cpu/sampling/token_logprobs.cpp, with the same bits: masses are
// summed as integers.
//
// Three kernels: maxima of every 256 tokens, and masses of all, with several CUDA blocks a row
// (row_passes.cuh); then a CUDA block a row counts the larger logits and selects, lists and sorts
// the table. It looks only at blocks of 256 tokens whose maximum reaches the token's logit, or the
// num_top-th largest maximum, which bounds the num_top-th largest logit from below.
//
// Bytes: a row twice, from memory then from L2, and the few blocks. Floors at 4.3 TB/s (an H200's
// measured copy rate) for float32 of 128256 tokens: 64 rows 8 us, 512 rows 61 us. The table's sort
// is by a network, n log^2 n / 512 steps of a block: meant for tables of up to some thousands.
//
// Limits: a token id outside [-1, vocab_size) counts as none. Not run on a GPU yet: compiled for
// sm_80 to sm_120 without spills, and run on the CPU (tests/cuda_on_cpu/).
#include "common/dispatch.h"
#include "cuda/backend.h"
#include "cuda/elementwise/row_passes.cuh"
#include "cuda/runtime/device_limits.h"

namespace lampo::cuda {
namespace {

/// Parallel arrays, to be sorted by descending logit, ties by ascending token.
struct Table {
  float* logit;
  int32_t* token;

  __device__ void order(int64_t a, int64_t b) const {
    if (logit[a] > logit[b] || (logit[a] == logit[b] && token[a] < token[b])) return;
    const float l = logit[a];
    const int32_t t = token[a];
    logit[a] = logit[b];
    token[a] = token[b];
    logit[b] = l;
    token[b] = t;
  }
  /// A bitonic network whose first step of each stage mirrors: every comparison then puts the
  /// earlier element first, so those beyond `size` may be left out.
  __device__ void sort(int64_t size) const {
    for (int64_t stage = 2; stage < 2 * size; stage *= 2) {
      for (int64_t distance = stage / 2; distance > 0; distance /= 2) {
        sync_block();
        for (int64_t i = threadIdx.x; i < size; i += kSampleThreads) {
          const int64_t partner = distance == stage / 2 ? i ^ (stage - 1) : i ^ distance;
          if (partner > i && partner < size) order(i, partner);
        }
      }
    }
    sync_block();
  }
};

struct TableStorage {
  SelectStorage select;
  unsigned size;
};

template <class E>
struct TableRow {
  const SampleWork& work;
  const RowScratch& scratch;
  LogitRow<E> logits;
  TableStorage& storage;

  /// Calls fn(l, token) for the tokens of blocks whose maximum is at least `bound`.
  template <class Fn>
  __device__ void for_tokens(float bound, Fn&& fn) const {
    RowPart{0, 0, 0, work.num_blocks()}.for_blocks([&](int64_t block) {
      if (scratch.block_max[block] < bound) return;
      const LaneTokens tokens = logits.load_block(block);
#pragma unroll
      for (int j = 0; j < kTokensPerLane; ++j) {
        if (tokens.token(j) < logits.size) fn(tokens.l[j], tokens.token(j));
      }
    });
  }

  __device__ int32_t rank_of(float l) const {
    Weight larger = 0;
    for_tokens(l, [&](float other, int64_t) { larger += other > l ? 1 : 0; });
    return static_cast<int32_t>(block_fold(larger, Sum{}, storage.select.sums)) + 1;
  }

  /// The num_top first tokens of the order, sorted.
  __device__ void fill(const Table& table, int64_t num_top) const {
    float value = minus_infinity(), bound = minus_infinity();
    int64_t last = logits.size;
    if (num_top < logits.size) {
      const auto count = static_cast<Weight>(num_top);
      if (num_top <= work.num_blocks()) {
        const Selected found = radix_select(
            [&](auto&& add) {
              for (int64_t i = threadIdx.x; i < work.num_blocks(); i += kSampleThreads) {
                add(descending_key(scratch.block_max[i]), Weight{1});
              }
            },
            32, count, storage.select);
        bound = value_of_key(found.key);
      }
      const Selected cut = radix_select(
          [&](auto&& add) {
            for_tokens(bound, [&](float l, int64_t) { add(descending_key(l), Weight{1}); });
          },
          32, count, storage.select);
      value = value_of_key(cut.key);
      if (cut.missing < cut.weight) {
        const Selected tie = radix_select(
            [&](auto&& add) {
              for_tokens(value, [&](float l, int64_t token) {
                if (l == value) add(static_cast<uint32_t>(token), Weight{1});
              });
            },
            23, cut.missing, storage.select);
        last = static_cast<int64_t>(tie.key);
      }
    }
    sync_block();
    if (threadIdx.x == 0) storage.size = 0;
    sync_block();
    for_tokens(value, [&](float l, int64_t token) {
      if (!(l > value || (l == value && token <= last))) return;
      const unsigned at = atomicAdd(&storage.size, 1u);
      table.logit[at] = l;
      table.token[at] = static_cast<int32_t>(token);
    });
    table.sort(num_top);
  }
};

/// One block a multiprocessor may have all registers: with fewer it spills on sm_80.
template <class E>
__global__ void __launch_bounds__(kSampleThreads, 1)
    table_kernel(const __grid_constant__ TokenLogprobsParams p,
                 const __grid_constant__ SampleWork work, Rows<E> rows) {
  wait_for_stream();
  for (int64_t b = blockIdx.x; b < work.num_rows; b += gridDim.x) {
    const RowScratch scratch = work.scratch(b);
    const TableRow<E> row = {work, scratch, rows.row(b, p.vocab_size),
                             shared_storage<TableStorage>()};
    const RawLogprob logprob = raw_logprob(work, scratch);
    const int64_t token = p.token_ids[b];
    const bool given = token >= 0 && token < p.vocab_size;
    const float l = given ? row.logits.at(token) : 0.0f;
    const int32_t rank = given ? row.rank_of(l) : 0;
    if (threadIdx.x == 0) {
      p.logprob[b] = given ? logprob(l) : __builtin_nanf("");
      p.rank[b] = rank;
    }
    if (p.num_top > 0) {
      const Table table = {p.top_logprobs + b * p.num_top, p.top_ids + b * p.num_top};
      row.fill(table, p.num_top);
      for (int64_t i = threadIdx.x; i < p.num_top; i += kSampleThreads) {
        table.logit[i] = logprob(table.logit[i]);
      }
    }
    sync_block();
  }
}

template <class E>
void run(const TokenLogprobsParams& p, int num_sms, int device, Stream stream) {
  SampleWork work = plan_work(p.workspace, p.batch_size, p.vocab_size, true,
                              choose_parts(p.batch_size, p.vocab_size, num_sms));
  work.layout.raw_part_max = work.layout.part_max;
  const Rows<E> rows = {static_cast<const E*>(p.logits), p.stride_logits_row};
  const auto launch_at = [&](int64_t blocks, size_t shared_bytes) {
    return launch_of("token_logprobs", blocks, shared_bytes, device, stream);
  };
  const int64_t parts = work.num_rows * work.parts;
  launch(launch_at(parts, sizeof(MaximaStorage)), maxima_kernel<E>, work, rows,
         work.layout.part_max, work.layout.block_max, false);
  launch(launch_at(parts, sizeof(MassStorage)), raw_mass_kernel<E>, work, rows);
  launch(launch_at(work.num_rows, sizeof(TableStorage)), table_kernel<E>, p, work, rows);
}

}  // namespace

void token_logprobs(const TokenLogprobsParams& p, int device, Stream stream) {
  const int num_sms = device_limits("token_logprobs", device).num_sms;
  const int64_t most = rows_at_once(p.batch_size, p.vocab_size);
  for (int64_t first = 0; first < p.batch_size; first += most) {
    TokenLogprobsParams part = p;
    part.batch_size = p.batch_size - first < most ? p.batch_size - first : most;
    part.logits =
        static_cast<const char*>(p.logits) + first * p.stride_logits_row * size_of(p.dtype);
    part.token_ids += first;
    part.logprob += first;
    part.rank += first;
    part.top_ids += first * p.num_top;
    part.top_logprobs += first * p.num_top;
    dispatch_dtype<float, BF16>(p.dtype, [&]<class E>() { run<E>(part, num_sms, device, stream); });
  }
}

}  // namespace lampo::cuda
