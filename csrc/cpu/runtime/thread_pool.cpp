// SPDX-License-Identifier: Apache-2.0
#include "cpu/runtime/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/check.h"
#include "cpu/runtime/team_size.h"
#include "cpu/runtime/topology.h"

namespace lampo::cpu {

/// What a team shares: its barrier, and the pieces taken from the share of every rank.
struct TeamState {
  /// Number of a piece in the low half, number of its phase (see generation) in the high half.
  struct alignas(64) Cursor {
    std::atomic<uint64_t> word{0};
  };

  alignas(64) std::atomic<uint32_t> arrived{0};
  std::atomic<uint32_t> generation{0};  // counts phases: the times between two barriers
  std::chrono::microseconds spin_time{0};
  // ns in which threads waited for late ones, and that times the number of late threads.
  std::atomic<int64_t> waited{0}, late{0};
  std::vector<Cursor> cursors;
};

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxThreads = 1024;
// Time to wait for the next job before parking: longer than the gap between two ops issued from
// Python, too short to show as load.
constexpr auto kAwakeTime = std::chrono::microseconds(200);
// Time to wait at a barrier before parking: longer than most waits of threads that all run. A
// parked thread keeps its claim to a turn until the late one arrives; a spinning one spends it.
constexpr auto kBarrierTime = std::chrono::microseconds(100);
// The same for more threads than cores: the late one may need this core.
constexpr auto kBarrierTimeWithoutCores = std::chrono::microseconds(5);
// Looks at a word between two looks at the clock, and before the first; most barriers take less.
constexpr int kSpins = 100, kFirstSpins = 1000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits until `word` differs from `old`: spins, then parks. It never yields: a thread that yields
/// gives up its place in the queue of its core, on a busy machine for several turns of the others.
uint32_t wait_for_change(const std::atomic<uint32_t>& word, uint32_t old,
                         std::chrono::microseconds spin_time) {
  uint32_t now = word.load(std::memory_order_acquire);
  const auto spin = [&](int count) {
    for (int i = 0; now == old && i < count; ++i) {
      relax();
      now = word.load(std::memory_order_acquire);
    }
  };
  spin(kFirstSpins);
  if (now != old) return now;
  const auto deadline = Clock::now() + spin_time;
  while (now == old && Clock::now() < deadline) spin(kSpins);
  while (now == old) {
    word.wait(old, std::memory_order_acquire);
    now = word.load(std::memory_order_acquire);
  }
  return now;
}

/// Asks the scheduler for short turns for this thread, once: after losing its core it gets it back
/// sooner, for the same share of the time. Linux 6.12 and later; other systems ignore or refuse it.
void ask_for_short_turns() {
  static thread_local bool asked = false;
  if (asked) return;
  asked = true;
#if defined(__linux__) && defined(SYS_sched_setattr)
  constexpr uint64_t kTurn = 100'000;  // ns, the shortest that Linux grants
  struct Attributes {
    uint32_t size = sizeof(Attributes), policy = 0;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime = 0, deadline = 0, period = 0;
    uint32_t least_clamp = 0, greatest_clamp = 0;
  } attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof(attributes), 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.runtime = kTurn;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
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
  explicit ThreadPool(int size) : size_(size), team_size_(size) {
    team_.spin_time = has_own_cores_ ? kBarrierTime : kBarrierTimeWithoutCores;
    team_.cursors = std::vector<TeamState::Cursor>(size);
    for (int rank = 1; rank < size_; ++rank) {
      threads_.emplace_back([this, rank] { work(rank); });
    }
  }

  ~ThreadPool() {
    start_job(0);
    for (std::thread& thread : threads_) thread.join();
  }

  int size() const { return size_; }

  void run(TeamFunction fn, const void* context) {
    const Clock::time_point begin = Clock::now();
    const int team_size = team_size_.choose(begin);
    if (team_size == 1) return fn(context, Team{});
    ask_for_short_turns();
    fn_ = fn;
    context_ = context;
    caller_core_ = has_own_cores_ ? current_core() : -1;
    start_job(team_size);
    run_rank(0, team_size);
    const Clock::time_point end = Clock::now();
    team_size_.add(end, std::chrono::nanoseconds(end - begin).count(),
                   team_.waited.exchange(0, std::memory_order_relaxed),
                   team_.late.exchange(0, std::memory_order_relaxed));
  }

  /// Drops the workers without joining: after fork() they do not exist.
  void abandon() {
    for (std::thread& thread : threads_) new (&thread) std::thread();
    threads_.clear();
  }

 private:
  // A job's word: its number above the size of its team. Size 0 ends the workers.
  static constexpr uint32_t kSizeMask = 2 * kMaxThreads - 1;

  /// Threads in the team of the next job change their number rarely: those that are not in it sleep
  /// until it changes.
  void start_job(int team_size) {
    const auto size = static_cast<uint32_t>(team_size);
    if (awake_.exchange(size, std::memory_order_relaxed) != size) awake_.notify_all();
    const uint32_t last = job_.load(std::memory_order_relaxed);
    job_.store((last & ~kSizeMask) + (kSizeMask + 1) + size, std::memory_order_release);
    job_.notify_all();
  }

  void run_rank(int rank, int team_size) {
    const Team team{rank, team_size, &team_};
    fn_(context_, team);
    team.sync();
  }

  void work(int rank) {
    ask_for_short_turns();
    uint32_t seen = 0;
    for (;;) {
      seen = wait_for_change(job_, seen, kAwakeTime);
      const auto team_size = static_cast<int>(seen & kSizeMask);
      if (team_size == 0) return;
      if (rank < team_size) {
        if (caller_core_ >= 0 && caller_core_ == current_core()) leave_core(caller_core_);
        run_rank(rank, team_size);
      } else {
        awake_.wait(static_cast<uint32_t>(team_size), std::memory_order_relaxed);
      }
    }
  }

  const int size_;
  const bool has_own_cores_ = static_cast<unsigned>(size_) <= std::thread::hardware_concurrency();
  TeamSize team_size_;
  std::vector<std::thread> threads_;
  TeamFunction fn_ = nullptr;
  const void* context_ = nullptr;
  int caller_core_ = -1;  // core that workers must leave; -1: none
  TeamState team_;
  alignas(64) std::atomic<uint32_t> job_{0};
  std::atomic<uint32_t> awake_{0};  // size of the last team
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
  const uint32_t generation = state->generation.load(std::memory_order_relaxed);
  const uint32_t arrived = state->arrived.fetch_add(1, std::memory_order_acq_rel) + 1;
  if (arrived == static_cast<uint32_t>(size)) {
    state->arrived.store(0, std::memory_order_relaxed);
    state->generation.store(generation + 1, std::memory_order_release);
    state->generation.notify_all();
    return;
  }
  for (int i = 0; i < kFirstSpins; ++i) {
    if (state->generation.load(std::memory_order_acquire) != generation) return;
    relax();
  }
  // The first thread measures the time for which the late ones hold up all others.
  const Clock::time_point begin = Clock::now();
  const int late = size - static_cast<int>(state->arrived.load(std::memory_order_relaxed));
  wait_for_change(state->generation, generation, state->spin_time);
  if (arrived == 1 && late > 0 && late < size) {
    const int64_t waited = std::chrono::nanoseconds(Clock::now() - begin).count();
    state->waited.fetch_add(waited, std::memory_order_relaxed);
    state->late.fetch_add(waited * late, std::memory_order_relaxed);
  }
}

int64_t Team::take_piece(int from, int64_t count) const {
  const uint64_t phase = state->generation.load(std::memory_order_relaxed);
  std::atomic<uint64_t>& word = state->cursors[from].word;
  uint64_t last = word.load(std::memory_order_relaxed);
  for (;;) {
    const uint64_t taken = last >> 32 == phase ? last & UINT32_MAX : 0;
    if (taken >= static_cast<uint64_t>(count)) return count;
    if (word.compare_exchange_weak(last, phase << 32 | (taken + 1), std::memory_order_relaxed)) {
      return static_cast<int64_t>(taken);
    }
  }
}

void run_team(TeamFunction fn, const void* context) {
  PoolState& s = state();
  const std::lock_guard lock(s.mutex);
  const int size = wanted_threads(s);
  if (size == 1) {
    fn(context, Team{});
    return;
  }
  if (!s.pool) s.pool = std::make_unique<ThreadPool>(size);
  s.pool->run(fn, context);
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
