// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/device/block.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/device/ptx/warpgroup.cuh"
#include "cuda/device/ptx/wgmma.cuh"
#include "cuda/runtime/tensor_map.h"
#include "kernels/hopper.h"

// No unnamed namespace: in images without these instructions its functions would be unused.
namespace lampo::cuda::hopper_test {

constexpr int kThreads = 128;
constexpr int kImageBytes = 32 << 10;

template <class... Params, class... Args>
int launch_one(void (*kernel)(Params...), int threads, int shared_bytes, const Args&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  return cudaLaunchKernelEx(&config, kernel, args...);
}

struct BoxStorage {
  alignas(1024) uint32_t words[256 * 32];
  Mbarrier barrier;
};

struct Coordinates {
  int at[4];
};

__global__ void box_kernel(const __grid_constant__ CUtensorMap map, Coordinates begin, int box_rows,
                           uint32_t* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  auto& storage = shared_storage<BoxStorage>();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    init_mbarrier(storage.barrier, 1);
    fence_async_proxy();
    arrive_and_expect(storage.barrier, static_cast<unsigned>(box_rows) * 128);
    copy_box(storage.words, map, begin.at, storage.barrier);
  }
  sync_block();
  wait(storage.barrier, 0);
  for (int i = thread; i < box_rows * 32; i += kThreads) out[i] = storage.words[i];
#endif
}

struct ImageStorage {
  alignas(1024) uint32_t words[kImageBytes / 4];
};

__device__ inline const char* load_image(const uint32_t* image) {
  auto& storage = shared_storage<ImageStorage>();
  for (int i = static_cast<int>(threadIdx.x); i < kImageBytes / 4; i += kThreads) {
    storage.words[i] = image[i];
  }
  fence_async_proxy();
  sync_block();
  return reinterpret_cast<const char*>(storage.words);
}

/// A descriptor with other offsets, in bytes.
__device__ inline uint64_t with_offsets(uint64_t descriptor, int leading, int between_groups) {
  const uint64_t fields = uint64_t{0x3fff} << 16 | uint64_t{0x3fff} << 32;
  return (descriptor & ~fields) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(between_groups >> 4) << 32;
}

/// Row of a lane's elements 0 and 1 (half = 0) or 2 and 3 (half = 1) of a fragment, and column.
__device__ inline int row_of(int half) {
  const int thread = static_cast<int>(threadIdx.x);
  return thread / kWarpSize * 16 + thread % kWarpSize / 4 + 8 * half;
}
__device__ inline int column_of(int fragment) {
  return 8 * fragment + static_cast<int>(threadIdx.x) % 4 * 2;
}

template <int kFragments>
__device__ inline void store(const FragmentC<float> (&c)[kFragments], float* out) {
  for (int i = 0; i < kFragments * 4; ++i) {
    const int at = row_of(i / 2 % 2) * 8 * kFragments + column_of(i / 4) + i % 2;
    out[at] = c[i / 4].value[i % 2 + i / 2 % 2 * 2];
  }
}

struct Operand {
  int begin, leading, between_groups;
};

template <class T>
__global__ void multiply_shared_kernel(const uint32_t* image, Operand a, Operand b, float* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const char* shared = load_image(image);
  FragmentC<float> c[16];
  fence_products();
  multiply_add_shared<T>(
      c, with_offsets(lines_along_k(shared + a.begin), a.leading, a.between_groups),
      with_offsets(lines_along_k(shared + b.begin), b.leading, b.between_groups), false);
  commit_products();
  wait_products<0>();
  store(c, out);
#endif
}

template <class T, int kFragments>
__global__ void multiply_registers_kernel(const uint32_t* a, const uint32_t* image, Operand b,
                                          float* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const char* shared = load_image(image);
  FragmentA left;
  for (int i = 0; i < 4; ++i) left.reg[i] = a[row_of(i % 2) * 8 + i / 2 * 4 + threadIdx.x % 4];
  FragmentC<float> c[kFragments];
  for (int i = 0; i < kFragments; ++i) c[i] = {1.0f, 1.0f, 1.0f, 1.0f};
  fence_products();
  multiply_add_registers<T>(
      c, left, with_offsets(lines_along_columns(shared + b.begin, 0), b.leading, b.between_groups));
  commit_products();
  wait_products<0>();
  store(c, out);
#endif
}

constexpr int kStages = 2;
constexpr int kTileBytes = 128 * 128;

struct PipelineStorage {
  alignas(1024) uint32_t a[64 * 32];
  alignas(1024) char b[kStages][kTileBytes];
  Mbarrier full[kStages], empty[kStages];
};

__global__ void pipeline_kernel(const uint32_t* a, const __grid_constant__ CUtensorMap b_map,
                                float* out, int tiles, [[maybe_unused]] int planted) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#ifdef __CUDACC__
  constexpr int fault = 0;  // nvcc mends some
#else
  const int fault = planted;
#endif
  auto& storage = shared_storage<PipelineStorage>();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == kThreads) {
    for (int stage = 0; stage < kStages; ++stage) {
      init_mbarrier(storage.full[stage], 1);
      init_mbarrier(storage.empty[stage], 4);
    }
    if (fault != 10) fence_async_proxy();
  }
  sync_block();
  if (thread >= kThreads) {
    if (thread > kThreads) return;
    for (int tile = 0; tile < tiles; ++tile) {
      const int stage = tile % kStages;
      const unsigned parity = static_cast<unsigned>(tile / kStages) % 2;
      if (fault != 2) wait(storage.empty[stage], parity ^ 1);
      if (fault == 3) {
        arrive(storage.full[stage]);
      } else {
        arrive_and_expect(storage.full[stage], fault == 4 ? kTileBytes / 2 : kTileBytes);
      }
      copy_box(storage.b[stage], b_map, {0, 0, 0, tile}, storage.full[stage]);
    }
    return;
  }
  FragmentC<float> c[16];
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages;
    const unsigned parity = static_cast<unsigned>(tile / kStages) % 2;
    for (int i = thread; i < 64 * 32; i += kThreads) {
      const int line = i / 32, word = i % 32;
      storage.a[line * 32 + (word ^ line % 8 * 4)] = a[tile * 64 * 32 + i];
    }
    if (fault != 9) fence_async_proxy();
    if (fault != 11) sync_threads<1, kThreads>();
    if (fault != 1) wait(storage.full[stage], parity);
    if (fault != 6) fence_products();
    const auto* left = reinterpret_cast<const char*>(storage.a);
    for (int step = 0; step < 4; ++step) {
      const int offset = fault == 5 ? (step ^ 1) * 32 : step * 32;
      multiply_add_shared<BF16>(c, lines_along_k(left + step * 32),
                                lines_along_k(storage.b[stage] + offset), tile + step > 0);
    }
    if (fault != 7) commit_products();
    if (fault != 8 && fault != 12) wait_products<0>();
    if (fault != 12) sync_threads<1, kThreads>();  // before a is written again
    if (thread % kWarpSize == 0) arrive(storage.empty[stage]);
  }
  if (fault == 12) wait_products<0>();
  store(c, out);
#endif
}

template <class Fn>
int of_type(bool bf16, Fn&& fn) {
  return bf16 ? fn.template operator()<BF16>() : fn.template operator()<F16>();
}

}  // namespace lampo::cuda::hopper_test

using namespace lampo::cuda;
using namespace lampo::cuda::hopper_test;

extern "C" int hopper_box(void* const* tensors, const int* n) {
  const auto map = encode_tensor_map({.dtype = lampo::DType::kF16,
                                      .data = tensors[0],
                                      .size = {n[0], n[1], n[2], n[3]},
                                      .stride = {n[4], n[5], n[6]},
                                      .box_rows = static_cast<uint32_t>(n[7])});
  if (!map) return cudaErrorInvalidValue;
  return launch_one(box_kernel, kThreads, sizeof(BoxStorage), *map,
                    Coordinates{{n[8], n[9], n[10], n[11]}}, n[7],
                    static_cast<uint32_t*>(tensors[1]));
}

extern "C" int hopper_multiply_shared(void* const* tensors, const int* n) {
  return of_type(n[0] != 0, [&]<class T>() {
    return launch_one(multiply_shared_kernel<T>, kThreads, sizeof(ImageStorage),
                      static_cast<const uint32_t*>(tensors[0]), Operand{n[1], n[2], n[3]},
                      Operand{n[4], n[5], n[6]}, static_cast<float*>(tensors[1]));
  });
}

extern "C" int hopper_multiply_registers(void* const* tensors, const int* n) {
  return of_type(n[0] != 0, [&]<class T>() {
    const auto run = [&](auto kernel) {
      return launch_one(kernel, kThreads, sizeof(ImageStorage),
                        static_cast<const uint32_t*>(tensors[0]),
                        static_cast<const uint32_t*>(tensors[1]), Operand{n[2], n[3], n[4]},
                        static_cast<float*>(tensors[2]));
    };
    return n[1] == 64 ? run(multiply_registers_kernel<T, 8>)
                      : run(multiply_registers_kernel<T, 16>);
  });
}

extern "C" int hopper_pipeline(void* const* tensors, const int* n) {
  const auto map = encode_tensor_map({.dtype = lampo::DType::kBF16,
                                      .data = tensors[1],
                                      .size = {64, 128, 1, n[0]},
                                      .stride = {64, 128 * 64, 128 * 64},
                                      .box_rows = 128});
  if (!map) return cudaErrorInvalidValue;
  return launch_one(pipeline_kernel, kThreads + kWarpSize, sizeof(PipelineStorage),
                    static_cast<const uint32_t*>(tensors[0]), *map, static_cast<float*>(tensors[2]),
                    n[0], n[1]);
}
