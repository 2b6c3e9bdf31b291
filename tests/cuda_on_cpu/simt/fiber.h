// SPDX-License-Identifier: Apache-2.0
// A fiber: a stack of its own, entered and left by hand. The sanitizers are told of every switch;
// for ThreadSanitizer a fiber is a thread, and a switch orders nothing.
#pragma once

#include <cstddef>

namespace simt {

class Fiber {
 public:
  /// Calls body() over and over, once per run of `resume`s that ends with leave(finished).
  explicit Fiber(void (*body)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Called by the scheduler: runs the fiber until it calls leave().
  void resume();
  /// Called by the running fiber: back to the scheduler.
  static void leave();

 private:
  static void start();

  void (*body_)();
  void* stack_;
  void* stack_pointer_;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_fiber_ = nullptr;
};

/// What ThreadSanitizer takes for synchronisation; nothing in other builds.
void happens_before(void* object);
void happens_after(void* object);

}  // namespace simt
