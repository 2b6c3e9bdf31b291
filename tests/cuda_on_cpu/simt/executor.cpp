// SPDX-License-Identifier: Apache-2.0
#include "simt/executor.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "simt/async_proxy.h"
#include "simt/fiber.h"

namespace simt {
namespace {

constexpr int kWarpSize = 32;

struct Barrier {
  unsigned arrived = 0;
  unsigned generation = 0;
  const char* what = nullptr;
  unsigned held[2] = {};  // for how many the predicate held, by generation
  char order[2] = {};     // two objects: who is early at the next barrier must not order this one
};

struct Mbarrier {
  unsigned arrivals = 0;
  unsigned missing = 0;  // arrivals of this phase
  int64_t bytes = 0;     // announced, less written
  unsigned phase = 0;
  const struct Thread* made_by = nullptr;  // until it has called fence_async_proxy()
  char order[2] = {};
};

/// An asynchronous operation that has not happened yet.
struct Write {
  std::function<std::string()> run;
  Mbarrier* mbarrier;
  int64_t bytes;
};

/// Of the lanes of one mask that meet at __syncwarp.
struct WarpBarrier {
  unsigned arrived = 0;  // in all generations
  char order[2] = {};
};

struct Block;

struct Thread {
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  dim3 index;
  unsigned lane = 0;
  Thread* warp = nullptr;                         // its lane 0
  std::map<unsigned, WarpBarrier> warp_barriers;  // of lane 0, by mask
  unsigned warp_size = 0;                         // the last warp of a block may have fewer lanes
  bool finished = false;

  const char* waits_for = nullptr;
  int place = 0;               // of the instruction that waits, if it is aligned
  Barrier* barrier = nullptr;  // waits for its generation to pass `generation`
  unsigned generation = 0;

  const Mbarrier* mbarrier = nullptr;  // waits for its phase of this parity to end
  unsigned parity = 0;

  std::shared_ptr<void> warp_storage;  // of lane 0
  bool waits_for_stream = false;
  bool waited_for_stream = false;

  bool posted = false;  // waits for the other lanes of `mask`
  unsigned mask = 0;
  const uint64_t* value = nullptr;
  int words = 0;
  uint64_t* from = nullptr;

  std::vector<Copy> uncommitted;
  std::vector<std::vector<Copy>> groups;  // the oldest first

  bool can_run() const {
    return !finished && !posted && !waits_for_stream &&
           (barrier == nullptr || barrier->generation != generation) &&
           (mbarrier == nullptr || mbarrier->phase % 2 != parity);
  }
};

struct Block {
  dim3 index;
  unsigned rank = 0;  // in its cluster
  unsigned char* shared = nullptr;
  Barrier barrier;
  std::map<int, Barrier> numbered_barriers;
  std::map<const void*, Mbarrier> mbarriers;
  char fenced = 0;
  Barrier* cluster_barrier = nullptr;
  std::vector<Block*>* cluster = nullptr;
  std::vector<Thread> threads;
};

struct State {
  Order order = Order::kForward;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Grid grid;
  void (*kernel)(const void*) = nullptr;
  const void* arguments = nullptr;
  Thread* running = nullptr;
  std::deque<Write> writes;  // the oldest first
  std::string error;
  std::vector<Memory> memory_of_stream;
  std::vector<std::vector<unsigned char>> hidden;  // its bytes, as long as a grid before runs
  char grid_begins = 0;
  char grid_ends = 0;
} state;

std::string text(dim3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string name(const Thread& t) {
  return "thread " + text(t.index) + " of block " + text(t.block->index);
}

void wait_until_resumed(Thread& t, const char* what) {
  t.waits_for = what;
  Fiber::leave();
  t.waits_for = nullptr;
}

/// Mostly one pointer: ThreadSanitizer makes strcmp() slow.
bool same(const char* a, const char* b) { return a == b || strcmp(a, b) == 0; }

/// Fails if another lane of the warp waits for the same, from another place.
void check_aligned(const Thread& t, const Thread& other, const char* what) {
  if (other.place == t.place) return;
  fail(std::string("is at ") + what + ", " + name(other) +
       " at another one: an aligned instruction must be the same for a whole warp (divergence?)");
}

unsigned meet(Barrier& barrier, unsigned expected, const char* what, bool predicate) {
  Thread& t = *state.running;
  const unsigned generation = barrier.generation;
  const unsigned parity = generation % 2;
  if (barrier.arrived > 0 && !same(barrier.what, what)) {
    fail(std::string("is at ") + what + " while others of its block are at " + barrier.what);
  }
  barrier.what = what;
  for (unsigned lane = 0; lane < t.warp_size; ++lane) {
    const Thread& other = t.warp[lane];
    if (other.barrier == &barrier && other.generation == generation) check_aligned(t, other, what);
  }
  happens_before(&barrier.order[parity]);
  barrier.held[parity] += predicate;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    barrier.held[1 - parity] = 0;
    ++barrier.generation;
  } else {
    t.barrier = &barrier;
    t.generation = generation;
    wait_until_resumed(t, what);
    t.barrier = nullptr;
  }
  t.place = 0;
  happens_after(&barrier.order[parity]);
  return barrier.held[parity];
}

// Byte by byte: the sanitizers check calls of memcpy, also here, and parts may be forbidden.

/// The grid before has not ended: its memory holds other bytes.
void hide_memory() {
  for (const Memory& memory : state.memory_of_stream) {
    auto* at = static_cast<unsigned char*>(memory.at);
    std::vector<unsigned char>& bytes = state.hidden.emplace_back(memory.bytes);
    for (size_t i = 0; i < memory.bytes; ++i) {
      bytes[i] = at[i];
      at[i] = 0xff;
    }
  }
}

/// The grid before ends.
void show_memory() {
  for (size_t k = 0; k < state.hidden.size(); ++k) {
    auto* at = static_cast<unsigned char*>(state.memory_of_stream[k].at);
    for (size_t i = 0; i < state.hidden[k].size(); ++i) at[i] = state.hidden[k][i];
  }
  state.hidden.clear();
}

/// Lets the threads that wait for the grid before go on; false: there are none.
bool end_grid_before(const std::vector<Thread*>& threads) {
  show_memory();
  bool any = false;
  for (Thread* t : threads) {
    any = any || t->waits_for_stream;
    t->waits_for_stream = false;
  }
  return any;
}

void run_thread() {
  Thread& t = *state.running;
  happens_after(&state.grid_begins);
  state.kernel(state.arguments);
  if (!t.uncommitted.empty() || !t.groups.empty()) {
    fail("has left the kernel with asynchronous copies that it did not wait for");
  }
  if (products_under_way()) fail("has left the kernel with products that it did not wait for");
  if (state.grid.begins_early && !t.waited_for_stream) {
    fail("has left a kernel that begins early without waiting for those before it");
  }
  happens_before(&state.grid_ends);
  t.finished = true;
  Fiber::leave();
}

void end_phase_if_complete(Mbarrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  ++barrier.phase;
}

/// Lets one asynchronous operation happen; returns what is wrong with it, or nothing.
std::string finish_write(const Write& write) {
  std::string wrong = write.run();
  happens_before_async(&write.mbarrier->order[write.mbarrier->phase % 2]);
  write.mbarrier->bytes -= write.bytes;
  end_phase_if_complete(*write.mbarrier);
  return wrong;
}

/// Who waits for what, when nobody can go on.
std::string deadlock(const std::vector<Block*>& cluster) {
  std::string result = "threads wait for one another for ever (a divergent barrier?):";
  constexpr int kNamed = 8;
  int waiting = 0, finished = 0;
  std::string left;
  const char* last = nullptr;
  for (const Block* block : cluster) {
    for (const Thread& t : block->threads) {
      if (t.finished) {
        if (finished++ == 0) left = name(t);
      } else if (waiting++ < kNamed || t.waits_for != last) {
        result += "\n  " + name(t) + " is at " + t.waits_for;
        last = t.waits_for;
      }
    }
  }
  result += "\n  " + std::to_string(waiting) + " wait, " + std::to_string(finished) + " have left";
  return result + (finished > 0 ? ", the first of them " + left : "");
}

/// begins_early: before the grid before has ended.
void run_cluster(const std::vector<Block*>& cluster, bool begins_early) {
  std::vector<Thread*> threads;
  for (Block* block : cluster) {
    for (Thread& t : block->threads) threads.push_back(&t);
  }
  const bool backward = state.order == Order::kBackward;
  size_t finished = 0;
  if (begins_early) hide_memory();
  while (finished < threads.size()) {
    bool any = false;
    for (size_t i = 0; i < threads.size(); ++i) {
      Thread& t = *threads[backward ? threads.size() - 1 - i : i];
      if (!t.can_run()) continue;
      any = true;
      state.running = &t;
      t.fiber->resume();
      if (!state.error.empty()) {
        happens_after(&state.error);
        throw Error(state.error);
      }
      finished += t.finished;
    }
    if (any) continue;
    if (!state.writes.empty()) {
      const Write write = state.writes.front();
      state.writes.pop_front();
      if (const std::string wrong = finish_write(write); !wrong.empty()) throw Error(wrong);
      continue;
    }
    if (!end_grid_before(threads)) throw Error(deadlock(cluster));
  }
  if (!state.writes.empty()) {
    throw Error("the block has ended before its asynchronous copies");
  }
}

/// The blocks of cluster `number`; their fibers are not those that ran the same threads before, so
/// that ThreadSanitizer sees two blocks' accesses as those of different threads.
std::vector<std::unique_ptr<Block>> make_cluster(unsigned number, std::vector<Block*>& cluster,
                                                 Barrier& barrier,
                                                 std::vector<unsigned char*>& shared) {
  const Grid& g = state.grid;
  const unsigned num_threads = g.block.x * g.block.y * g.block.z;
  const unsigned clusters_x = g.grid.x / g.cluster;
  std::vector<std::unique_ptr<Block>> blocks;
  for (unsigned rank = 0; rank < g.cluster; ++rank) {
    auto block = std::make_unique<Block>();
    block->index = {number % clusters_x * g.cluster + rank, number / clusters_x % g.grid.y,
                    number / clusters_x / g.grid.y};
    block->rank = rank;
    block->cluster = &cluster;
    block->cluster_barrier = &barrier;
    if (g.shared_bytes > 0) {
      void* memory = nullptr;
      if (posix_memalign(&memory, 1024, g.shared_bytes) != 0) throw std::bad_alloc();
      memset(memory, 0xff, g.shared_bytes);  // NaN: what nobody wrote must not look like a result
      block->shared = static_cast<unsigned char*>(memory);
      shared.push_back(block->shared);
    }
    block->threads.resize(num_threads);
    for (unsigned i = 0; i < num_threads; ++i) {
      Thread& t = block->threads[i];
      t.fiber = state.fibers[(rank * num_threads + i + number) % state.fibers.size()].get();
      t.block = block.get();
      t.index = {i % g.block.x, i / g.block.x % g.block.y, i / g.block.x / g.block.y};
      t.lane = i % kWarpSize;
      t.warp = &t - t.lane;
      t.warp_size = std::min<unsigned>(kWarpSize, num_threads - (i - t.lane));
    }
    cluster.push_back(block.get());
    blocks.push_back(std::move(block));
  }
  return blocks;
}

}  // namespace

int code_arch = 90;
RunInstead run_instead = nullptr;

void set_order(Order order) { state.order = order; }

void run_grid(const Grid& grid, void (*kernel)(const void*), const void* arguments) {
  state.grid = grid;
  state.kernel = kernel;
  state.arguments = arguments;
  const unsigned per_cluster = grid.block.x * grid.block.y * grid.block.z * grid.cluster;
  while (state.fibers.size() < per_cluster + 1) {
    state.fibers.push_back(std::make_unique<Fiber>(run_thread));
  }
  const unsigned num_clusters = grid.grid.x / grid.cluster * grid.grid.y * grid.grid.z;
  // Kept to the end: to free and reuse them in between would order the blocks.
  std::vector<unsigned char*> shared;
  std::vector<std::vector<std::unique_ptr<Block>>> blocks;
  std::deque<Barrier> barriers;
  try {
    for (unsigned i = 0; i < num_clusters; ++i) {
      const unsigned number = state.order == Order::kBackward ? num_clusters - 1 - i : i;
      std::vector<Block*> cluster;
      blocks.push_back(make_cluster(number, cluster, barriers.emplace_back(), shared));
      happens_before(&state.grid_begins);
      run_cluster(cluster, i == 0 && grid.begins_early);
    }
  } catch (const Error&) {
    show_memory();
    state.error.clear();
    state.writes.clear();
    forget_async();
    state.fibers.clear();  // they stand in the middle of a kernel
    for (unsigned char* memory : shared) free(memory);
    throw;
  }
  happens_after(&state.grid_ends);
  for (unsigned char* memory : shared) free(memory);
}

void set_memory_of_stream(std::vector<Memory> memory) {
  state.memory_of_stream = std::move(memory);
}

void wait_for_stream() {
  Thread& t = *state.running;
  t.waited_for_stream = true;
  if (state.hidden.empty()) return;
  t.waits_for_stream = true;
  wait_until_resumed(t, "griddepcontrol.wait");
}

dim3 thread_index() { return state.running->index; }
dim3 block_index() { return state.running->block->index; }
dim3 block_size() { return state.grid.block; }
dim3 grid_size() { return state.grid.grid; }
unsigned lane_index() { return state.running->lane; }
unsigned cluster_rank() { return state.running->block->rank; }

void fail(const std::string& what) {
  state.error = name(*state.running) + " " + what;
  happens_before(&state.error);
  Fiber::leave();
  abort();  // a fiber that failed is not resumed
}

void* shared_memory(size_t bytes) {
  if (bytes > state.grid.shared_bytes) {
    fail("uses " + std::to_string(bytes) + " bytes of shared memory, the launch asked for " +
         std::to_string(state.grid.shared_bytes));
  }
  return state.running->block->shared;
}

bool in_shared(const void* address, size_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(address);
  const unsigned char* shared = state.running->block->shared;
  return shared != nullptr && begin >= shared && begin + bytes <= shared + state.grid.shared_bytes;
}

bool in_shared_of_cluster(const void* address, size_t bytes) {
  const auto* begin = static_cast<const unsigned char*>(address);
  const size_t size = state.grid.shared_bytes;
  for (const Block* block : *state.running->block->cluster) {
    if (begin < block->shared + size && begin + bytes > block->shared && size > 0) return true;
  }
  return false;
}

const char* shared_begin() { return reinterpret_cast<const char*>(state.running->block->shared); }

size_t shared_bytes() { return state.grid.shared_bytes; }

void aligned(int place) { state.running->place = place; }

void* map_shared(const void* address, unsigned rank) {
  const Block& block = *state.running->block;
  if (!in_shared(address, 1)) fail("maps an address that is not in its shared memory");
  if (rank >= block.cluster->size()) {
    fail("asks for block " + std::to_string(rank) + " of a cluster of " +
         std::to_string(block.cluster->size()));
  }
  return (*block.cluster)[rank]->shared +
         (static_cast<const unsigned char*>(address) - block.shared);
}

unsigned sync_block(const char* what, bool predicate) {
  Block& block = *state.running->block;
  return meet(block.barrier, static_cast<unsigned>(block.threads.size()), what, predicate);
}

void sync_cluster() {
  Block& block = *state.running->block;
  const size_t expected = block.threads.size() * block.cluster->size();
  meet(*block.cluster_barrier, static_cast<unsigned>(expected), "a cluster's barrier", false);
}

void sync_threads(int number, unsigned threads) {
  meet(state.running->block->numbered_barriers[number], threads, "a barrier of some threads",
       false);
}

namespace {

Mbarrier& mbarrier_at(const void* at) {
  const auto found = state.running->block->mbarriers.find(at);
  if (found == state.running->block->mbarriers.end()) {
    fail("uses an mbarrier that was not initialised");
  }
  return found->second;
}

}  // namespace

void init_mbarrier(const void* at, unsigned arrivals) {
  if (!in_shared(at, 8) || reinterpret_cast<uintptr_t>(at) % 8 != 0) {
    fail("makes an mbarrier that is not 8 aligned bytes of its shared memory");
  }
  auto [found, is_new] = state.running->block->mbarriers.try_emplace(at);
  if (!is_new) fail("initialises an mbarrier twice");
  found->second.arrivals = found->second.missing = arrivals;
  found->second.made_by = state.running;
}

void arrive_at_mbarrier(const void* at, int64_t announced_bytes) {
  Mbarrier& barrier = mbarrier_at(at);
  if (barrier.missing == 0) fail("arrives once too often at an mbarrier");
  happens_before(&barrier.order[barrier.phase % 2]);
  barrier.bytes += announced_bytes;
  --barrier.missing;
  const unsigned phase = barrier.phase;
  end_phase_if_complete(barrier);
  // Those that wait go first, where all happens at once: what comes too early is then seen.
  if (!late() && barrier.phase != phase) wait_until_resumed(*state.running, "its turn");
}

void wait_for_mbarrier(const void* at, unsigned parity) {
  Thread& t = *state.running;
  Mbarrier& barrier = mbarrier_at(at);
  if (barrier.phase % 2 == parity) {
    t.mbarrier = &barrier;
    t.parity = parity;
    wait_until_resumed(t, "an mbarrier");
    t.mbarrier = nullptr;
  }
  happens_after(&barrier.order[parity]);
}

void fence_async_proxy() {
  Block& block = *state.running->block;
  happens_before(&block.fenced);
  for (auto& [at, barrier] : block.mbarriers) {
    if (barrier.made_by == state.running) barrier.made_by = nullptr;
  }
}

bool late() { return state.order == Order::kForward; }

void write_async(std::function<std::string()> write, const void* mbarrier, int64_t bytes) {
  Mbarrier& barrier = mbarrier_at(mbarrier);
  if (barrier.made_by != nullptr) {
    fail("copies for an mbarrier that was made without fence_async_proxy()");
  }
  state.writes.push_back({std::move(write), &barrier, bytes});
  if (late()) return;
  const Write now = state.writes.back();
  state.writes.pop_back();
  if (const std::string wrong = finish_write(now); !wrong.empty()) fail(wrong);
}

std::shared_ptr<void>& warp_storage() { return state.running->warp->warp_storage; }

unsigned warp_index() {
  return static_cast<unsigned>(state.running - state.running->block->threads.data()) / kWarpSize;
}

void* fenced() { return &state.running->block->fenced; }
void* grid_ends() { return &state.grid_ends; }

void exchange_words(const char* what, unsigned mask, const uint64_t* value, int words,
                    uint64_t* from) {
  Thread& t = *state.running;
  if ((mask >> t.lane & 1) == 0) fail(std::string("is at ") + what + " but not in its mask");
  t.mask = mask;
  t.value = value;
  t.words = words;
  t.from = from;
  t.waits_for = what;
  bool all = true;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    if (lane >= t.warp_size) fail(std::string("is at ") + what + ", whose mask has missing lanes");
    const Thread& other = t.warp[lane];
    if (other.finished)
      fail(std::string("is at ") + what + " and waits for " + name(other) + ", which has left");
    if (&other == &t) continue;
    const bool meets = other.posted && other.mask == mask;
    if (meets && !same(other.waits_for, what)) {
      fail(std::string("is at ") + what + ", " + name(other) + " at " + other.waits_for +
           ": the lanes of a mask must call the same function");
    }
    if (meets) check_aligned(t, other, what);
    all = all && meets;
  }
  if (!all) {
    t.posted = true;
    wait_until_resumed(t, what);
    t.place = 0;
    return;
  }
  t.waits_for = nullptr;
  t.place = 0;
  for (unsigned lane = 0; lane < t.warp_size; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Thread& reader = t.warp[lane];
    for (unsigned source = 0; source < t.warp_size; ++source) {
      if ((mask >> source & 1) == 0) continue;
      for (int i = 0; i < words; ++i) reader.from[source * words + i] = t.warp[source].value[i];
    }
  }
  for (unsigned lane = 0; lane < t.warp_size; ++lane) {
    if (mask >> lane & 1) t.warp[lane].posted = false;
  }
}

void sync_warp(unsigned mask) {
  Thread& t = *state.running;
  WarpBarrier& barrier = t.warp->warp_barriers[mask];
  char* order = &barrier.order[barrier.arrived++ / std::popcount(mask) % 2];
  happens_before(order);
  exchange_words("__syncwarp", mask, nullptr, 0, nullptr);
  happens_after(order);
}

void issue_copy(const Copy& copy) { state.running->uncommitted.push_back(copy); }

void commit_copies() {
  Thread& t = *state.running;
  t.groups.push_back(std::move(t.uncommitted));
  t.uncommitted.clear();
}

bool next_arrival(int pending, Copy* copy) {
  auto& groups = state.running->groups;
  while (groups.size() > static_cast<size_t>(pending)) {
    if (groups.front().empty()) {
      groups.erase(groups.begin());
      continue;
    }
    *copy = groups.front().back();
    groups.front().pop_back();
    return true;
  }
  return false;
}

}  // namespace simt
