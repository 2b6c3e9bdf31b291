// SPDX-License-Identifier: Apache-2.0
// Access to dynamic shared memory.
#pragma once

namespace lampo::cuda {

/// The block's dynamic allocation as a SharedStorage, a plain struct of the kernel. The launch asks
/// for its size.
template <class SharedStorage>
__device__ inline SharedStorage& shared_storage() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return *reinterpret_cast<SharedStorage*>(bytes);
}

}  // namespace lampo::cuda
