// SPDX-License-Identifier: Apache-2.0
// CPU twin of csrc/cuda/device/ptx/async_copy.cuh. The bytes arrive at the wait and not before:
// until then the destination holds garbage, and AddressSanitizer reports whoever reads it. Both
// ends of a copy are writes, so ThreadSanitizer reports who still reads what a copy overwrites.
#pragma once

#include "cuda_runtime.h"
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace lampo::cuda {

template <int kBytes>
inline void copy_async(void* to_shared, const void* from, int valid = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (!simt::in_shared(to_shared, kBytes)) simt::fail("copies to outside its shared memory");
  if ((reinterpret_cast<uintptr_t>(to_shared) | reinterpret_cast<uintptr_t>(from)) % kBytes != 0) {
    simt::fail("copies from or to an address that is not aligned to the copy's size");
  }
  if (valid < 0 || valid > kBytes) simt::fail("copies more bytes than the copy has");
  // No memset of constant size: g++ expands it after ThreadSanitizer's pass, which misses it then.
  for (int i = 0; i < kBytes / 4; ++i) static_cast<uint32_t*>(to_shared)[i] = 0xffffffffu;
#ifdef SIMT_ASAN
  if constexpr (kBytes >= 8) __asan_poison_memory_region(to_shared, kBytes);
#endif
  simt::issue_copy({to_shared, from, kBytes, valid});
}

inline void commit_copies() { simt::commit_copies(); }

/// The bytes of a copy come to where it goes.
inline void arrive(const simt::Copy& copy) {
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(copy.to, copy.bytes);
#endif
  memset(copy.to, 0, copy.bytes);
  memcpy(copy.to, copy.from, copy.valid);
}

template <int kPending>
inline void wait_copies() {
  simt::Copy copy;
  while (simt::next_arrival(kPending, &copy)) arrive(copy);
}

}  // namespace lampo::cuda
