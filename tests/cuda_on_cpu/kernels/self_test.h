// SPDX-License-Identifier: Apache-2.0
// Small kernels that use all that the executor offers, each with faults to plant: 0 none.
#pragma once

#include <cstdint>

#include "common/tensor_view.h"

namespace lampo::cuda::self_test {

/// out[i] = x[n - 1 - i] through shared memory, a block of n threads.
/// 1: no barrier, 2: writes one element too many, 3: every other thread returns before the barrier,
/// 4: a warp is at another kind of barrier.
void reverse(const float* x, float* out, int n, int fault);

/// out[t] = cache[pages[t / page_size]][t % page_size] for n elements.
void gather_pages(const float* cache, const int* pages, float* out, int n, int page_size);

/// Sums columns of x [tiles, n] through two stages of cp.async.
/// 1: waits for one group too few, 2: not at all, 3: no barrier before a stage is filled again.
void stage_sum(const float* x, float* out, int tiles, int n, int fault);

/// out [16, 8] = a [16, K] b [8, K]^T by a warp, fragments by ldmatrix (16 bits) or by index.
/// 1: registers 1 and 2 of A swapped.
void multiply(DType dtype, const void* a, const void* b, void* out, bool by_ldmatrix, int fault);

/// out [2, 4, 32]: registers of ldmatrix of the rows x [2, 32, 16 bytes], each 32 from the same
/// shared memory. A race: the result is that of the executor's order of lanes, on both routes. The
/// fault is one of assembly (tests/cuda/test_ptx_faults.py): without "memory" the compiler drops the
/// first rows as unread.
void load_twice(const void* x, uint32_t* out);

/// out [9, 32]: shuffles, votes and reductions of x [32].
/// 1: a lane leaves first, 2: two halves of a warp call different functions with one mask,
/// 3: __syncwarp left out between a lane's write and its neighbour's read.
void warp_functions(const int* x, int* out, int fault);

/// out[block] = the sum of what the blocks of a cluster hold in shared memory.
/// 1: no barrier of the cluster after the writes, 2: a rank that does not exist
void cluster_sum(const float* x, float* out, int blocks, int cluster, int fault);

/// counts[x[i]] += 1. 1: not atomic. The last block to finish writes the sum to counts[bins].
void histogram(const int* x, int* counts, int* arrived, int n, int bins, int fault);

/// out = 2 x, n a multiple of 32, in a grid that begins before the one before it has ended.
/// 1: writes, 2: reads before it waits for that, 3: does not wait.
void begin_early(const float* x, float* out, int n, int fault);

/// A launch that hardware refuses. 1: too many threads, 2: less shared memory than the kernel uses.
void bad_launch(int fault);

}  // namespace lampo::cuda::self_test
