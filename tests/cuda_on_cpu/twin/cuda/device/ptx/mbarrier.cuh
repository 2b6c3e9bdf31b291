// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/mbarrier.cuh: the executor knows barriers by their addresses.
#pragma once

#include <cstdint>

#include "cuda_runtime.h"
#include "simt/async_proxy.h"

namespace lampo::cuda {

struct alignas(8) Mbarrier {
  uint64_t state;
};

inline unsigned shared_address(const void* address) { return simt::shared_offset(address); }

inline void init_mbarrier(Mbarrier& barrier, unsigned arrivals) {
  simt::init_mbarrier(&barrier, arrivals);
}

inline void arrive(Mbarrier& barrier) { simt::arrive_at_mbarrier(&barrier, 0); }

inline void arrive_and_expect(Mbarrier& barrier, unsigned bytes) {
  simt::arrive_at_mbarrier(&barrier, bytes);
}

inline void wait(Mbarrier& barrier, unsigned parity) { simt::wait_for_mbarrier(&barrier, parity); }

}  // namespace lampo::cuda
