// SPDX-License-Identifier: Apache-2.0
// The asynchronous proxy: copies of boxes by TMA, and wgmma's products of a warp. They access
// shared memory at once or as late as they may (set_order() of executor.h). For ThreadSanitizer TMA
// is a thread, and so are the products of each warpgroup, which see what TMA wrote, and what other
// threads wrote before fence_async_proxy(). Compiled without sanitizers, so that all they see of it
// are accesses that it names.
#pragma once

#include <array>
#include <cstdint>

namespace simt {

/// A box of a tensor of 16-bit elements, four dimensions, the innermost first.
struct Box {
  const void* data;   // of the tensor
  int64_t size[4];    // of the tensor
  int64_t stride[4];  // in bytes
  int box[4];
  int at[4];  // where the box begins
};
/// Starts a copy to `to`, of this block's shared memory, with a swizzle of 128 bytes.
void copy_box(void* to, const Box& box, const void* mbarrier);

/// A product [16, 16] x [16, columns] of a warp: what wgmma makes of one of its four warps.
struct Product {
  bool bf16;  // or float16
  int columns;
  bool a_in_registers;
  bool b_transposed;
  bool add;                           // to acc; else acc is written
  std::array<float*, 32> acc;         // by lane: fragments of four, columns / 8 of them
  std::array<const uint32_t*, 32> a;  // by lane: four registers
  uint64_t a_descriptor, b_descriptor;
};
// All lanes of a warp call these, with the same arguments.
void fence_products();
void issue_product(const Product& product);
void commit_products();
void wait_products(int pending);
/// Fails if these accumulators of this lane are those of a product under way.
void check_settled(const float* acc);

/// Whether this warp has products that it did not wait for.
bool products_under_way();

/// After a failure.
void forget_async();

/// As happens_before(), of TMA.
void happens_before_async(void* object);

/// The low 18 bits of an address in shared memory, as descriptors have them.
uint32_t shared_offset(const void* address);

}  // namespace simt
