// SPDX-License-Identifier: Apache-2.0
// A step of a model as a list of ops, like a CUDA graph: recorded once while the ops run over fixed
// buffers, then replayed by one call, in which the threads of the pool run the whole list with a
// barrier after every op.
//
//   Program program;
//   program.begin();           // ops called by this thread are run and recorded
//   rms_norm(...); linear(...);
//   program.end();
//   ...new values into the same buffers...
//   program.replay();
//
// A program holds the pointers of its ops' arguments: the caller keeps their memory alive.
// Values that an op checked (token ids, slots, page tables) are checked again before each replay.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cpu/runtime/team.h"

namespace lampo::cpu {

struct ProgramOp {
  std::string name;
  std::function<void(const Team&)> run;
  std::function<int64_t()> bytes;  // moved by the op, given the present values in the buffers
};

class Program {
 public:
  struct Timing {
    std::string name;
    int64_t bytes;
    double seconds;
  };

  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program();

  /// Starts recording on the calling thread; throws BackendError if it records already, or if this
  /// program has been recorded.
  void begin();
  void end();

  /// Throws what the checks throw, before any op runs; BackendError if the number of threads has
  /// changed since the recording (workspaces depend on it).
  void replay() const;
  /// Replays with a clock: seconds of every op, its barrier included.
  std::vector<Timing> profile() const;

  size_t size() const { return ops_.size(); }

  void add(ProgramOp op) { ops_.push_back(std::move(op)); }
  /// Adds a check, unless there is one with this `data` (checked values) and `bound` (their limit):
  /// all layers of a model ask for the same checks.
  void add_check(const void* data, int64_t bound, std::function<void()> check);

 private:
  struct Check {
    const void* data;
    int64_t bound;
    std::function<void()> run;
  };

  void run(double* seconds) const;

  std::vector<ProgramOp> ops_;
  std::vector<Check> checks_;
  int num_threads_ = 0;
};

/// The program that the calling thread is recording; null: none.
Program* recording_program();

/// Checks values now, and before each replay if the calling thread is recording.
template <class Check>
void check_values(const void* data, int64_t bound, Check&& check) {
  check();
  if (Program* program = recording_program()) program->add_check(data, bound, check);
}

}  // namespace lampo::cpu
