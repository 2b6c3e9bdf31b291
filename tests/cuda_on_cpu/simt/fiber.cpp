// SPDX-License-Identifier: Apache-2.0
#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SIMT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#ifndef __x86_64__
#error "the switch of stacks is written for x86-64"
#endif

// swapcontext() would cost a system call each, and AddressSanitizer clears a stack's shadow in it.
extern "C" void simt_switch(void** save, void* to);
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, . - simt_switch
)");

namespace simt {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // address space; what is not touched costs nothing
constexpr size_t kGuardBytes = 4096;

struct Scheduler {
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_bytes = 0;
  void* tsan_fiber = nullptr;
  Fiber* running = nullptr;
} scheduler;

}  // namespace

Fiber::Fiber(void (*body)()) : body_(body) {
  stack_ = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(stack_, kGuardBytes, PROT_NONE);
  // What simt_switch pops: six registers, then start() as the address to return to. A function is
  // entered with the stack 8 bytes off a multiple of 16.
  auto* top = reinterpret_cast<uint64_t*>(static_cast<char*>(stack_) + kStackBytes);
  top[-2] = reinterpret_cast<uint64_t>(&Fiber::start);
  stack_pointer_ = top - 8;
#ifdef SIMT_TSAN
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef SIMT_TSAN
  // What it did is before what comes now, even if it was left in the middle of a kernel.
  void* here = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, __tsan_switch_to_fiber_no_sync);
  __tsan_switch_to_fiber(here, 0);
  __tsan_destroy_fiber(tsan_fiber_);
#endif
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(stack_, kStackBytes);  // frames of a fiber that never returned
#endif
  munmap(stack_, kStackBytes);
}

void Fiber::resume() {
  scheduler.running = this;
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(&scheduler.fake_stack, stack_, kStackBytes);
#endif
#ifdef SIMT_TSAN
  scheduler.tsan_fiber = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch(&scheduler.stack_pointer, stack_pointer_);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave() {
  Fiber& self = *scheduler.running;
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(&self.fake_stack_, scheduler.stack_bottom, scheduler.stack_bytes);
#endif
#ifdef SIMT_TSAN
  __tsan_switch_to_fiber(scheduler.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  simt_switch(&self.stack_pointer_, scheduler.stack_pointer);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack_, &scheduler.stack_bottom,
                                  &scheduler.stack_bytes);
#endif
}

void Fiber::start() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack_bottom, &scheduler.stack_bytes);
#endif
  for (;;) scheduler.running->body_();
}

void happens_before([[maybe_unused]] void* object) {
#ifdef SIMT_TSAN
  __tsan_release(object);
#endif
}

void happens_after([[maybe_unused]] void* object) {
#ifdef SIMT_TSAN
  __tsan_acquire(object);
#endif
}

}  // namespace simt
