// SPDX-License-Identifier: Apache-2.0
#include "cpu/runtime/program.h"

#include <chrono>

#include "common/check.h"
#include "cpu/runtime/thread_pool.h"

namespace lampo::cpu {
namespace {

thread_local Program* current_program = nullptr;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Program* recording_program() { return current_program; }

Program::~Program() {
  if (current_program == this) current_program = nullptr;
}

void Program::begin() {
  if (current_program != nullptr) throw BackendError("program: this thread is recording already");
  if (num_threads_ != 0) throw BackendError("program: has been recorded, make a new one");
  num_threads_ = cpu::num_threads();
  current_program = this;
}

void Program::end() {
  if (current_program != this) throw BackendError("program: is not being recorded by this thread");
  current_program = nullptr;
}

void Program::add_check(const void* data, int64_t bound, std::function<void()> check) {
  for (const Check& known : checks_) {
    if (known.data == data && known.bound == bound) return;
  }
  checks_.push_back({data, bound, std::move(check)});
}

void Program::run(double* seconds) const {
  if (current_program != nullptr) throw BackendError("program: replayed while one is recorded");
  if (num_threads_ != cpu::num_threads()) {
    throw BackendError("program: was recorded with " + std::to_string(num_threads_) +
                       " threads, now there are " + std::to_string(cpu::num_threads()) +
                       ": record it again");
  }
  for (const Check& check : checks_) check.run();
  run_team([&](const Team& team) {
    double before = seconds != nullptr ? now() : 0.0;
    for (size_t i = 0; i < ops_.size(); ++i) {
      ops_[i].run(team);
      team.sync();
      if (seconds != nullptr && team.rank == 0) {
        const double after = now();
        seconds[i] = after - before;
        before = after;
      }
    }
  });
}

void Program::replay() const { run(nullptr); }

std::vector<Program::Timing> Program::profile() const {
  std::vector<double> seconds(ops_.size());
  run(seconds.data());
  std::vector<Timing> timings;
  timings.reserve(ops_.size());
  for (size_t i = 0; i < ops_.size(); ++i) {
    timings.push_back({ops_[i].name, ops_[i].bytes(), seconds[i]});
  }
  return timings;
}

}  // namespace lampo::cpu
