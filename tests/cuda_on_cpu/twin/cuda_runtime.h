// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/ uses of CUDA C++ and its runtime, for g++ and the executor. What is missing here
// does not compile; __shared__ is missing on purpose (device/ptx/shared_memory.cuh is the one way).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "simt/executor.h"

#define __CUDA_ARCH_FEAT_SM90_ALL
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

namespace simt {

/// threadIdx and its like: values that are asked for when read.
template <dim3 (*kGet)(), unsigned dim3::* kMember>
struct Component {
  operator unsigned() const { return kGet().*kMember; }
};
template <dim3 (*kGet)()>
struct Dimensions {
  Component<kGet, &dim3::x> x;
  Component<kGet, &dim3::y> y;
  Component<kGet, &dim3::z> z;
};

}  // namespace simt

inline constexpr simt::Dimensions<simt::thread_index> threadIdx;
inline constexpr simt::Dimensions<simt::block_index> blockIdx;
inline constexpr simt::Dimensions<simt::block_size> blockDim;
inline constexpr simt::Dimensions<simt::grid_size> gridDim;

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
template <class T>
inline T __ldg(const T* from) {
  return *from;
}
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline float __expf(float x) { return expf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

inline void __syncthreads() { simt::sync_block("__syncthreads", false); }
inline int __syncthreads_count(int predicate) {
  return static_cast<int>(simt::sync_block("__syncthreads_count", predicate != 0));
}
inline int __syncthreads_or(int predicate) {
  return simt::sync_block("__syncthreads_or", predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate) {
  return simt::sync_block("__syncthreads_and", predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::sync_warp(mask); }

namespace simt {

template <class T>
T shuffle(const char* what, unsigned mask, T value, unsigned source) {
  const auto from = exchange(what, mask, value);
  if ((mask >> source & 1) == 0) fail(std::string(what) + " reads a lane that is not in the mask");
  return from[source];
}

/// Folds what the lanes of `mask` gave.
template <class T, class Fold>
T reduce(const char* what, unsigned mask, T value, Fold fold) {
  const auto from = exchange(what, mask, value);
  T result = value;
  bool first = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    result = first ? from[lane] : fold(result, from[lane]);
    first = false;
  }
  return result;
}

}  // namespace simt

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned first = simt::lane_index() & ~static_cast<unsigned>(width - 1);
  return simt::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = simt::lane_index(), first = lane & ~static_cast<unsigned>(width - 1);
  return simt::shuffle("__shfl_up_sync", mask, value, lane < first + delta ? lane : lane - delta);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = simt::lane_index(), last = lane | static_cast<unsigned>(width - 1);
  return simt::shuffle("__shfl_down_sync", mask, value, lane + delta > last ? lane : lane + delta);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const unsigned lane = simt::lane_index(), last = lane | static_cast<unsigned>(width - 1);
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  return simt::shuffle("__shfl_xor_sync", mask, value, source > last ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned own = predicate != 0 ? 1u << simt::lane_index() : 0u;
  return simt::reduce("__ballot_sync", mask, own, [](unsigned a, unsigned b) { return a | b; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
template <class T>
inline T __reduce_add_sync(unsigned mask, T value) {
  return simt::reduce("__reduce_add_sync", mask, value, [](T a, T b) {
    return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
  });
}
template <class T>
inline T __reduce_min_sync(unsigned mask, T value) {
  return simt::reduce("__reduce_min_sync", mask, value, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
inline T __reduce_max_sync(unsigned mask, T value) {
  return simt::reduce("__reduce_max_sync", mask, value, [](T a, T b) { return a < b ? b : a; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return simt::reduce("__reduce_or_sync", mask, value,
                      [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return simt::reduce("__reduce_and_sync", mask, value,
                      [](unsigned a, unsigned b) { return a & b; });
}

// Atomics order what is around them, which CUDA's do not: a missing fence is not found.
template <class T>
inline T atomicAdd(T* at, T value) {
  return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL);
}
inline float atomicAdd(float* at, float value) {
  auto* bits = reinterpret_cast<uint32_t*>(at);
  uint32_t before = __atomic_load_n(bits, __ATOMIC_ACQUIRE);
  for (;;) {
    const auto after = std::bit_cast<uint32_t>(std::bit_cast<float>(before) + value);
    if (__atomic_compare_exchange_n(bits, &before, after, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE)) {
      return std::bit_cast<float>(before);
    }
  }
}
template <class T>
inline T atomicMax(T* at, T value) {
  T before = __atomic_load_n(at, __ATOMIC_ACQUIRE);
  while (before < value && !__atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_ACQ_REL,
                                                        __ATOMIC_ACQUIRE)) {
  }
  return before;
}
template <class T>
inline T atomicOr(T* at, T value) {
  return __atomic_fetch_or(at, value, __ATOMIC_ACQ_REL);
}
template <class T>
inline T atomicExch(T* at, T value) {
  return __atomic_exchange_n(at, value, __ATOMIC_ACQ_REL);
}
template <class T>
inline T atomicCAS(T* at, T compare, T value) {
  __atomic_compare_exchange_n(at, &compare, value, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
  return compare;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;

/// A small device of the Hopper generation.
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 4,
  cudaDevAttrComputeCapabilityMajor = 9,
  cudaDevAttrComputeCapabilityMinor = 0,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 228 << 10,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 227 << 10,
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which;
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int ptxVersion;
};

namespace simt {
cudaError_t allow_shared_bytes(const void* kernel, int bytes);
int current_device();
/// Makes a device current for this thread, and a context on it.
void set_device(int device);
bool has_context(int device);
}  // namespace simt
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  attributes->sharedSizeBytes = 0;
  attributes->ptxVersion = simt::code_arch;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  return simt::allow_shared_bytes(kernel, bytes);
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = simt::current_device();
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  simt::set_device(device);
  return cudaSuccess;
}

#define CUDART_VERSION 13000
enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess,
  cudaDriverEntryPointSymbolNotFound
};
enum { cudaEnableDefault };
namespace simt {
/// The driver's functions that csrc/cuda/ asks for; null for others.
void* driver_function(const char* name);
}  // namespace simt
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                    int, cudaDriverEntryPointQueryResult* status) {
  *function = simt::driver_function(name);
  *status = *function != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
using cudaGraph_t = void*;
/// Graphs are captured by device.py, not here.
inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, void*,
                                            cudaGraph_t*, void*, void*, void*) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t, void*, size_t*) { return cudaErrorInvalidValue; }
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  if (bytes > 0) memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

enum cudaLaunchAttributeID {
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    struct {
      unsigned x, y, z;
    } clusterDim;
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace simt {

/// What a launch is refused for, as by hardware: sizes of the grid, a block, its shared memory.
cudaError_t check_config(const cudaLaunchConfig_t& config, const void* kernel, Grid* grid);

}  // namespace simt

template <class... Params, class... Args>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                                      Args&&... args) {
  simt::Grid grid;
  if (const cudaError_t error =
          simt::check_config(*config, reinterpret_cast<const void*>(kernel), &grid);
      error != cudaSuccess) {
    return error;
  }
  using Arguments = std::tuple<std::remove_cv_t<Params>...>;
  const std::pair<void (*)(Params...), Arguments> call{kernel, {std::forward<Args>(args)...}};
  if (simt::run_instead != nullptr) {
    const std::vector<simt::Argument> list = std::apply(
        [](const auto&... values) {
          return std::vector<simt::Argument>{{&values, sizeof(values)}...};
        },
        call.second);
    if (simt::run_instead(reinterpret_cast<const void*>(kernel), grid, list)) return cudaSuccess;
  }
  simt::run_grid(
      grid,
      [](const void* at) {
        const auto& [kernel, arguments] = *static_cast<const decltype(call)*>(at);
        std::apply(kernel, arguments);
      },
      &call);
  return cudaSuccess;
}
