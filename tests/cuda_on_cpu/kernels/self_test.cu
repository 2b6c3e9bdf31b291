// SPDX-License-Identifier: Apache-2.0
#include "common/dispatch.h"
#include "cuda/device/block.cuh"
#include "cuda/device/ptx/async_copy.cuh"
#include "cuda/device/ptx/cluster.cuh"
#include "cuda/device/ptx/matrix.cuh"
#include "cuda/device/ptx/stream.cuh"
#include "cuda/runtime/launch.h"
#include "kernels/self_test.h"

namespace lampo::cuda::self_test {
namespace {

constexpr int kThreads = 96;

Launch launch_of(const char* op, unsigned blocks, unsigned threads, size_t shared_bytes = 0) {
  return {.op = op,
          .device = 0,
          .stream = {},
          .grid = dim3(blocks),
          .block = dim3(threads),
          .shared_bytes = shared_bytes};
}

struct ReverseStorage {
  float value[kThreads];
};

__global__ void reverse_kernel(const float* x, float* out, int n, int fault) {
  auto& storage = shared_storage<ReverseStorage>();
  const int i = static_cast<int>(threadIdx.x);
  storage.value[fault == 2 ? i + 1 : i] = x[i];
  if (fault == 3 && i % 2 == 1) return;
  if (fault == 4 && i < kWarpSize) {
    __syncthreads_or(1);
  } else if (fault != 1) {
    sync_block();
  }
  out[i] = storage.value[n - 1 - i];
}

__global__ void gather_pages_kernel(const float* cache, const int* pages, float* out, int n,
                                    int page_size) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = cache[static_cast<int64_t>(pages[i / page_size]) * page_size + i % page_size];
}

struct StageStorage {
  alignas(16) float stage[2][kThreads * 4];
};

/// Every thread copies four columns and sums those of its right neighbour.
__global__ void stage_sum_kernel(const float* x, float* out, int tiles, int n, int fault) {
  auto& storage = shared_storage<StageStorage>();
  const int i = static_cast<int>(threadIdx.x);
  const int own = 4 * i, others = 4 * ((i + 1) % static_cast<int>(blockDim.x));
  const auto fill = [&](int tile) {
    const int left = n - own;
    const int valid = left >= 4 ? 4 : left > 0 ? left : 0;
    const float* from = valid > 0 ? x + static_cast<int64_t>(tile) * n + own : x;
    if (tile < tiles) copy_async<16>(storage.stage[tile % 2] + own, from, 4 * valid);
    commit_copies();
  };
  float sum[4] = {};
  fill(0);
  for (int tile = 0; tile < tiles; ++tile) {
    fill(tile + 1);
    if (fault == 1) wait_copies<2>();
    if (fault != 1 && fault != 2) wait_copies<1>();
    sync_block();
    for (int c = 0; c < 4; ++c) sum[c] += storage.stage[tile % 2][others + c];
    if (fault != 3) sync_block();
  }
  wait_copies<0>();
  for (int c = 0; c < 4; ++c) {
    if (others + c < n) out[others + c] = sum[c];
  }
}

struct MultiplyStorage {
  alignas(16) uint32_t a[16][8];
  alignas(16) uint32_t b[8][8];
};

/// Rows of 32 bytes, whatever the type: 8 registers.
template <class T, class C>
__global__ void multiply_kernel(const uint32_t* a, const uint32_t* b, C* out, bool by_ldmatrix,
                                int fault) {
  auto& storage = shared_storage<MultiplyStorage>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 16 * 8; i += kWarpSize) storage.a[i / 8][i % 8] = a[i];
  for (int i = lane; i < 8 * 8; i += kWarpSize) storage.b[i / 8][i % 8] = b[i];
  __syncwarp();
  const int g = lane / 4, t = lane % 4;
  FragmentA left;
  FragmentB right;
  if (by_ldmatrix) {
    load_matrices(left.reg, &storage.a[lane % 16][lane / 16 * 4]);
    uint32_t both[4];  // the upper two matrices are the lower ones again
    load_matrices(both, &storage.b[lane % 8][lane / 8 % 2 * 4]);
    right = {both[0], both[1]};
  } else {
    for (int r = 0; r < 4; ++r) left.reg[r] = storage.a[g + 8 * (r % 2)][r / 2 * 4 + t];
    for (int r = 0; r < 2; ++r) right.reg[r] = storage.b[g][r * 4 + t];
  }
  if (fault == 1) {
    const uint32_t swapped = left.reg[1];
    left.reg[1] = left.reg[2];
    left.reg[2] = swapped;
  }
  FragmentC<C> sum = {};
  if constexpr (std::is_same_v<T, int8_t>) {
    sum = multiply_int8(left, right, sum);
  } else {
    multiply_add<T>(sum, left, right);
  }
  for (int i = 0; i < 4; ++i) out[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sum.value[i];
}

/// Two loads by ldmatrix from the same addresses. A barrier of the warp would have to come before and
/// after each of them; without one a compiler shows what it makes of ldmatrix alone.
__global__ void load_twice_kernel(const uint4* x, uint32_t* out) {
  auto& storage = shared_storage<MultiplyStorage>();
  const int lane = static_cast<int>(threadIdx.x);
  auto* row = reinterpret_cast<uint4*>(storage.a) + lane;
  uint32_t first[4], second[4];
  *row = x[lane];
  load_matrices(first, row);
  *row = x[kWarpSize + lane];
  load_matrices(second, row);
  for (int i = 0; i < 4; ++i) out[i * kWarpSize + lane] = first[i];
  for (int i = 0; i < 4; ++i) out[(4 + i) * kWarpSize + lane] = second[i];
}

struct WarpStorage {
  int value[kWarpSize];
};

__global__ void warp_functions_kernel(const int* x, int* out, int fault) {
  auto& storage = shared_storage<WarpStorage>();
  const int lane = static_cast<int>(threadIdx.x);
  const int value = x[lane];
  if (fault == 1 && lane == 5) return;
  int row = 0;
  const auto give = [&](int result) { out[row++ * kWarpSize + lane] = result; };
  if (fault == 2 && lane < 16) {
    give(__any_sync(kAllLanes, value > 0));
  } else {
    give(__shfl_sync(kAllLanes, value, lane + 3, 16));
  }
  give(__shfl_up_sync(kAllLanes, value, 2, 8));
  give(__shfl_down_sync(kAllLanes, value, 2, 8));
  give(shuffle_xor(value, 4));
  give(static_cast<int>(__ballot_sync(kAllLanes, value > 0)));
  // Half a warp by itself.
  if (lane < 16) {
    give(__reduce_add_sync(0x0000ffffu, value));
  } else {
    give(__reduce_max_sync(0xffff0000u, value));
  }
  give(__any_sync(kAllLanes, value == 3) * 2 + __all_sync(kAllLanes, value > -100));
  storage.value[lane] = value;
  if (fault != 3) __syncwarp();
  give(storage.value[(lane + 1) % kWarpSize]);
  give(__syncthreads_count(value > 0));
}

struct ClusterStorage {
  float value;
};

__global__ void cluster_sum_kernel(const float* x, float* out, int fault, int cluster) {
  auto& storage = shared_storage<ClusterStorage>();
  const unsigned lane = threadIdx.x;
  if (lane == 0) storage.value = x[blockIdx.x];
  if (fault == 1) {
    sync_block();
  } else {
    sync_cluster();
  }
  if (lane == 0) {
    float sum = 0.0f;
    for (int rank = 0; rank < cluster; ++rank) {
      sum += *map_shared(&storage.value, static_cast<unsigned>(rank) + (fault == 2));
    }
    out[blockIdx.x] = sum + static_cast<float>(cluster_rank());
  }
  sync_cluster();  // nobody leaves while others read its memory
}

__global__ void histogram_kernel(const int* x, int* counts, int* arrived, int n, int bins,
                                 int fault) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) {
    if (fault == 1) {
      counts[x[i]] += 1;
    } else {
      atomicAdd(counts + x[i], 1);
    }
  }
  sync_block();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(arrived, 1) != static_cast<int>(gridDim.x) - 1) return;
  __threadfence();
  int sum = 0;
  for (int bin = 0; bin < bins; ++bin) sum += atomicAdd(counts + bin, 0);
  counts[bins] = sum;
}

/// Begins while the grid before still writes x and reads out.
__global__ void begin_early_kernel(const float* x, float* out, int fault) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (fault == 1) out[i] = 2.0f * x[i];
  float value = fault == 2 ? x[i] : 0.0f;
  if (fault != 3) wait_for_stream();
  if (fault != 2) value = x[i];
  if (fault != 1) out[i] = 2.0f * value;
}

}  // namespace

void reverse(const float* x, float* out, int n, int fault) {
  launch(launch_of("reverse", 1, static_cast<unsigned>(n), sizeof(ReverseStorage)), reverse_kernel,
         x, out, n, fault);
}

void gather_pages(const float* cache, const int* pages, float* out, int n, int page_size) {
  launch(launch_of("gather_pages", static_cast<unsigned>(n + 63) / 64, 64), gather_pages_kernel,
         cache, pages, out, n, page_size);
}

void stage_sum(const float* x, float* out, int tiles, int n, int fault) {
  launch(launch_of("stage_sum", 1, kThreads, sizeof(StageStorage)), stage_sum_kernel, x, out, tiles,
         n, fault);
}

void multiply(DType dtype, const void* a, const void* b, void* out, bool by_ldmatrix, int fault) {
  const Launch at = launch_of("multiply", 1, 32, sizeof(MultiplyStorage));
  const auto* left = static_cast<const uint32_t*>(a);
  const auto* right = static_cast<const uint32_t*>(b);
  dispatch_dtype<BF16, F16>(dtype, [&]<class T>() {
    launch(at, multiply_kernel<T, float>, left, right, static_cast<float*>(out), by_ldmatrix,
           fault);
  });
  if (dtype == DType::kI8) {
    launch(at, multiply_kernel<int8_t, int32_t>, left, right, static_cast<int32_t*>(out),
           by_ldmatrix, fault);
  }
}

void load_twice(const void* x, uint32_t* out) {
  launch(launch_of("load_twice", 1, 32, sizeof(MultiplyStorage)), load_twice_kernel,
         static_cast<const uint4*>(x), out);
}

void warp_functions(const int* x, int* out, int fault) {
  launch(launch_of("warp_functions", 1, 32, sizeof(WarpStorage)), warp_functions_kernel, x, out,
         fault);
}

void cluster_sum(const float* x, float* out, int blocks, int cluster, int fault) {
  Launch at = launch_of("cluster_sum", static_cast<unsigned>(blocks), 32, sizeof(ClusterStorage));
  at.cluster = static_cast<unsigned>(cluster);
  launch(at, cluster_sum_kernel, x, out, fault, cluster);
}

void histogram(const int* x, int* counts, int* arrived, int n, int bins, int fault) {
  launch(launch_of("histogram", static_cast<unsigned>(n + 63) / 64, 64), histogram_kernel, x,
         counts, arrived, n, bins, fault);
}

void begin_early(const float* x, float* out, int n, int fault) {
  Launch at = launch_of("begin_early", static_cast<unsigned>(n) / 32, 32);
  at.begins_early = true;
  launch(at, begin_early_kernel, x, out, fault);
}

void bad_launch(int fault) {
  float* none = nullptr;
  launch(launch_of("bad_launch", 1, fault == 1 ? 1056 : 32, fault == 2 ? sizeof(float) : 4096),
         reverse_kernel, none, none, 0, 0);
}

}  // namespace lampo::cuda::self_test
