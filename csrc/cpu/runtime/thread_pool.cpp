// SPDX-License-Identifier: Apache-2.0
#include "cpu/runtime/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/check.h"
#include "cpu/runtime/topology.h"

namespace lampo::cpu {
namespace {

constexpr int kMaxThreads = 1024;
// Time to wait before parking: longer than the gap between two ops issued from Python, too short to
// show as load.
constexpr auto kAwakeTime = std::chrono::microseconds(200);
// Time to spin without yielding; most barriers take less. Afterwards every look at the word is
// followed by a yield: on a busy machine, the awaited thread may need this core.
constexpr int kSpins = 1000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits until `word` differs from `old`: spins, then yields, then parks.
uint32_t wait_for_change(const std::atomic<uint32_t>& word, uint32_t old) {
  uint32_t now = word.load(std::memory_order_acquire);
  for (int i = 0; now == old && i < kSpins; ++i) {
    relax();
    now = word.load(std::memory_order_acquire);
  }
  if (now != old) return now;
  const auto deadline = std::chrono::steady_clock::now() + kAwakeTime;
  while (now == old && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
    now = word.load(std::memory_order_acquire);
  }
  while (now == old) {
    word.wait(old, std::memory_order_acquire);
    now = word.load(std::memory_order_acquire);
  }
  return now;
}

/// The core that runs this thread, -1 if unknown.
int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

/// Moves this thread to another core if there is one. Linux often wakes a worker on its waker's
/// core and keeps both there while work comes in bursts; every barrier then costs a spin and a
/// context switch. Sampling one of 128,256 tokens on two threads: 300 us without this, 75 with it.
void leave_core([[maybe_unused]] int core) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  cpu_set_t others = allowed;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof(others), &others) != 0) return;
  sched_setaffinity(0, sizeof(allowed), &allowed);
#endif
}

class ThreadPool {
 public:
  explicit ThreadPool(int size) : size_(size) {
    for (int rank = 1; rank < size_; ++rank) {
      threads_.emplace_back([this, rank] { work(rank); });
    }
  }

  ~ThreadPool() {
    job_size_ = 0;
    start_job();
    for (std::thread& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  void run(TeamFunction fn, const void* context, int team_size) {
    fn_ = fn;
    context_ = context;
    job_size_ = team_size;
    caller_core_ = has_own_cores_ ? current_core() : -1;
    remaining_.store(static_cast<uint32_t>(size_ - 1), std::memory_order_relaxed);
    start_job();
    fn(context, Team{0, team_size, team_size > 1 ? &barrier_ : nullptr});
    uint32_t left = remaining_.load(std::memory_order_acquire);
    while (left != 0) left = wait_for_change(remaining_, left);
  }

  /// Drops the workers without joining: after fork() they do not exist.
  void abandon() {
    for (std::thread& thread : threads_) new (&thread) std::thread();
    threads_.clear();
  }

 private:
  void start_job() {
    job_.fetch_add(1, std::memory_order_release);
    job_.notify_all();
  }

  void work(int rank) {
    uint32_t seen = 0;
    for (;;) {
      seen = wait_for_change(job_, seen);
      if (job_size_ == 0) return;
      if (caller_core_ >= 0 && caller_core_ == current_core()) leave_core(caller_core_);
      if (rank < job_size_) fn_(context_, Team{rank, job_size_, &barrier_});
      if (remaining_.fetch_sub(1, std::memory_order_acq_rel) == 1) remaining_.notify_one();
    }
  }

  const int size_;
  const bool has_own_cores_ = static_cast<unsigned>(size_) <= std::thread::hardware_concurrency();
  std::vector<std::thread> threads_;
  TeamFunction fn_ = nullptr;
  const void* context_ = nullptr;
  int job_size_ = 0;
  int caller_core_ = -1;  // core that workers must leave; -1: none
  TeamBarrier barrier_;
  alignas(64) std::atomic<uint32_t> job_{0};
  alignas(64) std::atomic<uint32_t> remaining_{0};
};

int threads_from_environment() {
  const char* text = std::getenv("LAMPO_NUM_THREADS");
  if (text == nullptr || *text == '\0') return usable_cores();
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0' || value < 1 || value > kMaxThreads) {
    throw ArgumentError("LAMPO_NUM_THREADS: expected an integer in [1, 1024], got '" +
                        std::string(text) + "'");
  }
  return static_cast<int>(value);
}

struct PoolState {
  std::mutex mutex;
  std::unique_ptr<ThreadPool> pool;
  int wanted = 0;  // 0: not decided yet
};

PoolState& state();

void before_fork() { state().mutex.lock(); }
void after_fork_in_parent() { state().mutex.unlock(); }
void after_fork_in_child() {
  PoolState& s = state();
  if (s.pool) {
    s.pool->abandon();
    s.pool.release();  // its threads, and locks they may hold, exist in the parent only
  }
  s.mutex.unlock();
}

/// Never destroyed: ops may still run while the interpreter shuts down.
PoolState& state() {
  static PoolState* instance = [] {
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    return new PoolState;
  }();
  return *instance;
}

int wanted_threads(PoolState& s) {
  if (s.wanted == 0) s.wanted = threads_from_environment();
  return s.wanted;
}

}  // namespace

void Team::sync() const {
  if (size == 1) return;
  const uint32_t generation = barrier->generation.load(std::memory_order_relaxed);
  if (barrier->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size)) {
    barrier->arrived.store(0, std::memory_order_relaxed);
    barrier->generation.store(generation + 1, std::memory_order_release);
    barrier->generation.notify_all();
    return;
  }
  wait_for_change(barrier->generation, generation);
}

void run_team(TeamFunction fn, const void* context, int num_threads) {
  if (num_threads == 1) {
    fn(context, Team{});
    return;
  }
  PoolState& s = state();
  const std::lock_guard lock(s.mutex);
  const int size = wanted_threads(s);
  if (size == 1) {
    fn(context, Team{});
    return;
  }
  if (!s.pool) s.pool = std::make_unique<ThreadPool>(size);
  s.pool->run(fn, context, num_threads == 0 || num_threads > size ? size : num_threads);
}

int num_threads() {
  PoolState& s = state();
  const std::lock_guard lock(s.mutex);
  return wanted_threads(s);
}

void set_num_threads(int count) {
  check_range("num_threads", count, 1, kMaxThreads);
  PoolState& s = state();
  const std::lock_guard lock(s.mutex);
  if (s.pool && s.pool->size() != count) s.pool.reset();
  s.wanted = count;
}

}  // namespace lampo::cpu
