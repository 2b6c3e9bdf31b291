// SPDX-License-Identifier: Apache-2.0
// The plan of a paged_attention call, from the lengths on the device: see plan.h.
//
// One block. A thread sums the costs of a run of row tiles, a prefix sum over threads follows, and
// a thread finds a cut by binary search in it.
// With batch_size below 512 the sums stay in shared memory.
//
// Expected to take three to four microseconds, most of it latency: lengths, a scan, two searches.
// Not run on a GPU yet: compiled for sm_80 to sm_120 without spills, and run on the CPU
// (tests/cuda_on_cpu/).
#include "cuda/attention/plan.h"
#include "cuda/attention/run.h"
#include "cuda/device/block.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/runtime/launch.h"

namespace lampo::cuda {
namespace {

constexpr int kThreads = 512;

struct PlanStorage {
  int64_t costs[kThreads + 1];
  BlockScanStorage<int64_t> scan;
};

/// values[i + 1] = fn(0) + ... + fn(i) for i below n; store(i, before, fn(i)) for each.
template <class Fn, class Store>
__device__ inline void running_sums(int n, PlanStorage& storage, Fn&& fn, Store&& store) {
  int64_t before = 0;
  for (int base = 0; base < n; base += kThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const int64_t value = i < n ? fn(i) : 0;
    int64_t total;
    const int64_t sum = before + block_running_sum(value, static_cast<int>(threadIdx.x), kThreads,
                                                   total, storage.scan);
    if (i < n) store(i, sum - value, value);
    before += total;
  }
}

__global__ void __launch_bounds__(kThreads)
    plan_kernel(const __grid_constant__ PagedAttentionParams p, const __grid_constant__ Plan plan) {
  wait_for_stream();
  auto& storage = shared_storage<PlanStorage>();
  const int thread = static_cast<int>(threadIdx.x);
  const int sequences = num_sequences(p);
  const int lanes = sequences < kThreads ? kThreads / sequences : 1;
  const int entries = sequences * lanes;
  int64_t* costs = entries <= kThreads ? storage.costs : plan.costs;
  running_sums(
      entries, storage, [&](int i) { return cost_of_lane(p, plan, i / lanes, i % lanes, lanes); },
      [&](int i, int64_t before, int64_t cost) {
        if (i == 0) costs[0] = 0;
        costs[i + 1] = before + cost;
      });
  if (plan.deterministic) {
    // Sequences get rows for their splits until none is left.
    const int64_t rows = plan.partial_rows - rows_of_block(plan, plan.num_blocks);
    running_sums(
        sequences, storage, [&](int i) { return split_rows_of(p, plan, i); },
        [&](int i, int64_t before, int64_t wanted) {
          plan.first_split[i] = wanted > 0 && before + wanted <= rows ? before : kNowhere;
        });
  }
  sync_block();
  for (int i = thread; i <= plan.num_blocks; i += kThreads) {
    plan.cuts[i] = find_cut(p, plan, costs, lanes, i);
    plan.arrived[i] = 0;
  }
  sync_block();
  for (int i = thread; i <= plan.num_blocks; i += kThreads) {
    plan.tile_cuts[i] = cuts_within_tile(plan, i);
  }
}

}  // namespace

void run_plan(const PagedAttentionParams& p, const Plan& plan, int device, Stream stream) {
  if (p.planned) return;
  launch({.op = "paged_attention",
          .device = device,
          .stream = stream,
          .grid = dim3(1),
          .block = dim3(kThreads),
          .shared_bytes = sizeof(PlanStorage),
          .begins_early = true},
         plan_kernel, p, plan);
}

}  // namespace lampo::cuda
