// SPDX-License-Identifier: Apache-2.0
#include "ops/backend.h"

#include <string>

namespace lampo {

void throw_no_cuda_kernel(const char* op) {
#if LAMPO_WITH_CUDA
  throw BackendError(std::string(op) + ": has no CUDA kernel yet, use CPU tensors");
#else
  throw BackendError(std::string(op) +
                     ": this build has no CUDA kernels (LAMPO_CUDA=OFF or no compiler at build "
                     "time), rebuild with LAMPO_CUDA=ON");
#endif
}

}  // namespace lampo
