// SPDX-License-Identifier: Apache-2.0
// The number of threads that compute: all of the pool, or fewer while other processes take cores.
#pragma once

#include <chrono>
#include <cstdint>

namespace lampo::cpu {

/// Chooses a team's size from the time that it has lost in barriers.
///
/// A thread that has lost its core holds up its team. Let k of n threads be late for a share s of
/// the time: the team does the work of n (1 - s) threads. Without them it would do that of n - k,
/// or of three quarters of them, as these lose their cores at times too. It shrinks by k if that is
/// more, and tries all threads again later.
class TeamSize {
 public:
  using Clock = std::chrono::steady_clock;

  explicit TeamSize(int all) : all_(all), size_(all) {}

  /// Number of threads for a job that begins now.
  int choose(Clock::time_point now) {
    if (size_ < all_ && now >= next_trial_) {
      size_ = all_;
      reset();
    }
    return size_;
  }

  /// Adds a job: its time, the part of it in which threads waited for late ones, and that part
  /// times the number of late threads. In ns.
  void add(Clock::time_point end, int64_t time, int64_t waited, int64_t late) {
    if (time < kShortestJob) return;
    time_ += time;
    waited_ += waited;
    late_ += late;
    if (time_ < kWindow) return;
    // The number of late threads, rounded up; at least one thread remains.
    const int64_t mean = waited_ > 0 ? (late_ + waited_ - 1) / waited_ : 0;
    const int64_t count = mean < size_ ? mean : size_ - 1;
    if (count > 0 && 4 * (time_ - waited_) * size_ < 3 * (size_ - count) * time_) {
      size_ -= static_cast<int>(count);
      next_trial_ = end + pause_;
      if (pause_ < kLongestPause) pause_ *= 2;
    } else if (size_ == all_) {
      pause_ = kShortestPause;
    }
    reset();
  }

 private:
  // In ns. In shorter jobs threads are late because they have been asleep.
  static constexpr int64_t kShortestJob = 1'000'000;
  static constexpr int64_t kWindow = 20'000'000;
  static constexpr auto kShortestPause = std::chrono::milliseconds(50);
  static constexpr auto kLongestPause = std::chrono::milliseconds(1600);

  void reset() { time_ = waited_ = late_ = 0; }

  const int all_;
  int size_;
  int64_t time_ = 0, waited_ = 0, late_ = 0;
  Clock::time_point next_trial_;
  Clock::duration pause_ = kShortestPause;
};

}  // namespace lampo::cpu
