// SPDX-License-Identifier: Apache-2.0
// Runs a grid of CUDA threads on the CPU: every thread of a cluster is a fiber, clusters run one
// after the other. A fiber runs until it waits for others, so an execution is one of those that
// hardware allows, and the same every time; set_order() chooses which.
//
// The executor is compiled without ThreadSanitizer, kernels with it: all that orders two threads'
// accesses is what happens_before() and happens_after() say, that is barriers, not the scheduler.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simt {

/// What a kernel did that no kernel may, with the block and the thread that did it.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Grid {
  dim3 grid;
  dim3 block;
  unsigned cluster = 1;  // blocks in x that live at the same time
  size_t shared_bytes = 0;
  bool begins_early = false;  // before the grid before it has ended: until wait_for_stream()
};

/// The architecture of all kernels: 90, or that of translated ones.
extern int code_arch;

enum class Order { kForward, kBackward };
/// Which thread, warp and block goes first where several could. Forward, an asynchronous operation
/// happens as late as it may; backward, at once.
void set_order(Order order);

/// Memory of a grid before, which ends only when all threads of a cluster wait: until then it holds
/// other bytes, and what a grid that began early writes there is lost.
struct Memory {
  void* at;
  size_t bytes;
};
void set_memory_of_stream(std::vector<Memory> memory);

/// Runs kernel(arguments) in every thread of the grid. Throws Error.
void run_grid(const Grid& grid, void (*kernel)(const void*), const void* arguments);

/// An argument of a launch.
struct Argument {
  const void* value;
  size_t bytes;
};
/// If set, is offered every launch; false: the kernel is to be run as it was compiled.
using RunInstead = bool (*)(const void* kernel, const Grid& grid,
                            const std::vector<Argument>& arguments);
extern RunInstead run_instead;

// The rest is called by the threads of a grid.

dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();
unsigned lane_index();
unsigned cluster_rank();

[[noreturn]] void fail(const std::string& what);

/// The block's shared memory, of which a kernel is about to use `bytes`: exactly what it asked for.
void* shared_memory(size_t bytes);
/// What the block has, the launch asked for.
size_t shared_bytes();
/// The address in block `rank` of the cluster that corresponds to `address` in this block's.
void* map_shared(const void* address, unsigned rank);
/// Where this block's shared memory begins.
const char* shared_begin();
/// Whether [address, address + bytes) is in the shared memory of this thread's block.
bool in_shared(const void* address, size_t bytes);
/// Whether any of it is in the shared memory of a block of this thread's cluster.
bool in_shared_of_cluster(const void* address, size_t bytes);

/// The thread is about to meet others by an instruction that all lanes of its warp must execute
/// together, in the same place of the program: `place`, not 0, tells places apart.
void aligned(int place);

/// Waits for the grids before: griddepcontrol.wait.
void wait_for_stream();

/// All threads of a block, or of a cluster, meet. Returns for how many `predicate` held. Threads
/// that meet must give the same `what`.
unsigned sync_block(const char* what, bool predicate);
void sync_cluster();
/// The lanes of `mask` meet; like __syncwarp it orders their accesses, which exchange() does not.
void sync_warp(unsigned mask);

/// The lanes of `mask` meet and show one another `words` values: from[lane * words ...].
void exchange_words(const char* what, unsigned mask, const uint64_t* value, int words,
                    uint64_t* from);

/// What each lane of `mask` gave; zeros for the others.
template <class T>
std::array<T, 32> exchange(const char* what, unsigned mask, const T& value) {
  constexpr int kWords = (sizeof(T) + 7) / 8;
  uint64_t words[kWords] = {};
  uint64_t from[32 * kWords] = {};
  memcpy(words, &value, sizeof(T));
  exchange_words(what, mask, words, kWords, from);
  std::array<T, 32> result;
  for (int lane = 0; lane < 32; ++lane) memcpy(&result[lane], from + lane * kWords, sizeof(T));
  return result;
}

/// Some of the block's threads meet at the barrier of this number.
void sync_threads(int number, unsigned threads);

// mbarrier, by address in shared memory. A phase ends after `arrivals` of them, once as many bytes
// have been written by asynchronous operations as arrivals announced.

void init_mbarrier(const void* at, unsigned arrivals);
void arrive_at_mbarrier(const void* at, int64_t announced_bytes);
/// Until the phase of this parity is over.
void wait_for_mbarrier(const void* at, unsigned parity);
/// fence.proxy.async of this thread: asynchronous operations see what it wrote before.
void fence_async_proxy();

// Asynchronous operations (async_proxy.h).

/// Whether they happen as late as they may: see set_order().
bool late();
/// Runs `write` and then counts its bytes for the mbarrier: now or, late, when no thread can go on.
/// `write` returns what is wrong, or nothing.
void write_async(std::function<std::string()> write, const void* mbarrier, int64_t bytes);
/// Kept for a warp, and empty at first: for instructions of several steps.
std::shared_ptr<void>& warp_storage();
unsigned warp_index();
/// What fence_async_proxy() of a thread of this block is before, and what is before the grid's end.
void* fenced();
void* grid_ends();

/// A cp.async of this thread: `valid` bytes from global memory, zeros up to `bytes`.
struct Copy {
  void* to;
  const void* from;
  int bytes;
  int valid;
};
void issue_copy(const Copy& copy);
void commit_copies();
/// The next copy of a group that is not among the `pending` youngest; false: there is none.
bool next_arrival(int pending, Copy* copy);

}  // namespace simt
