// SPDX-License-Identifier: Apache-2.0
// Runs ops on the kernels of csrc/cuda/ on the CPU for tests/cuda/test_cuda_on_cpu.py: reads calls
// from stdin, answers on stdout. A call and its answer:
//
//   op <name> <numbers> <tensors> <order: 0 forward, 1 backward>
//   <name> <value>                                              for every number
//   <name> <dtype> <ndim> <shape...> <stride...> <offset> <bytes>   for every tensor, then its
//   bytes
//
//   ok <tensors>, then the bytes of every tensor; or: error <length>, then the message
//
// Every tensor is an allocation of its own, of exactly its size; in an AddressSanitizer build what
// lies between its rows may not be touched either.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "calls/call.h"
#include "simt/executor.h"
#ifdef SIMT_PTX
#include "ptx/runtime/launch.h"
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace {

constexpr int kElementBytes[] = {4, 2, 2, 1, 1, 1, 4, 8, 1};  // by DType

void (*find_call(const std::string& name))(const Call&) {
  for (const Calls* calls : {
           &kElementwiseCalls,
           &kRecurrentCalls,
           &kAttentionCalls,
           &kSamplingCalls,
           &kLinearCalls,
           &kSelfTestCalls,
           &kHopperCalls,
#ifdef SIMT_PTX
           &kPtxCalls,
#endif
       }) {
    const auto found = calls->find(name);
    if (found != calls->end()) return found->second;
  }
  throw std::runtime_error("no call named " + name);
}

/// Forbids, or allows again, all bytes of a tensor that belong to none of its rows.
void guard_gaps([[maybe_unused]] const Tensor& t, [[maybe_unused]] bool forbid) {
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(t.memory.get(), t.bytes);
  if (!forbid || t.view.numel() == 0) return;
  const int64_t size = kElementBytes[static_cast<int>(t.view.dtype)];
  const int inner = t.view.ndim - 1;
  int64_t rows = 1;
  for (int i = 0; i < inner; ++i) rows *= t.view.shape[i];
  std::vector<std::pair<int64_t, int64_t>> used;  // [begin, end) in bytes
  for (int64_t row = 0; row < rows; ++row) {
    int64_t left = row, begin = static_cast<char*>(t.view.data) - t.memory.get();
    for (int i = inner - 1; i >= 0; left /= t.view.shape[i], --i) {
      begin += left % t.view.shape[i] * t.view.stride[i] * size;
    }
    used.push_back({begin, begin + t.view.shape[inner] * size});
  }
  std::sort(used.begin(), used.end());
  int64_t end = 0;
  for (const auto& row : used) {
    if (row.first > end) __asan_poison_memory_region(t.memory.get() + end, row.first - end);
    end = std::max(end, row.second);
  }
  __asan_poison_memory_region(t.memory.get() + end, t.bytes - end);
#endif
}

void read_exactly(void* to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) exit(2);
}

std::string read_line() {
  std::string line;
  for (int c = getchar(); c != '\n'; c = getchar()) {
    if (c == EOF) exit(0);
    line.push_back(static_cast<char>(c));
  }
  return line;
}

std::vector<std::string> read_words() {
  std::vector<std::string> words(1);
  for (const char c : read_line()) {
    if (c == ' ') {
      words.emplace_back();
    } else {
      words.back().push_back(c);
    }
  }
  return words;
}

void read_tensor(Call* call) {
  const std::vector<std::string> words = read_words();
  call->order.push_back(words[0]);
  Tensor& t = call->tensors[words[0]];
  t.view.dtype = static_cast<lampo::DType>(std::stoi(words[1]));
  t.view.device = {lampo::DeviceType::kCUDA, 0};
  t.view.ndim = std::stoi(words[2]);
  for (int i = 0; i < t.view.ndim; ++i) {
    t.view.shape[i] = std::stoll(words[3 + i]);
    t.view.stride[i] = std::stoll(words[3 + t.view.ndim + i]);
  }
  const size_t offset = std::stoull(words[3 + 2 * t.view.ndim]);
  t.bytes = std::stoull(words[4 + 2 * t.view.ndim]);
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, t.bytes) != 0) throw std::bad_alloc();
  t.memory.reset(static_cast<char*>(memory));
  read_exactly(t.memory.get(), t.bytes);
  t.view.data = t.memory.get() + offset;
}

void answer_call() {
  const std::vector<std::string> words = read_words();
  Call call;
  for (int i = std::stoi(words[2]); i > 0; --i) {
    const std::vector<std::string> number = read_words();
    call.numbers[number[0]] = std::stod(number[1]);
  }
  for (int i = std::stoi(words[3]); i > 0; --i) read_tensor(&call);
  simt::set_order(words[4] == "1" ? simt::Order::kBackward : simt::Order::kForward);
  std::string error;
  std::vector<simt::Memory> memory;
  for (const auto& [name, tensor] : call.tensors) {
    guard_gaps(tensor, true);
    memory.push_back({tensor.memory.get(), tensor.bytes});
  }
  simt::set_memory_of_stream(std::move(memory));
  try {
    find_call(words[1])(call);
  } catch (const std::exception& e) {
    error = e.what();
  }
  for (const auto& [name, tensor] : call.tensors) guard_gaps(tensor, false);
  if (!error.empty()) {
    printf("error %zu\n%s", error.size(), error.c_str());
  } else {
    printf("ok %zu\n", call.order.size());
    for (const std::string& name : call.order) {
      const Tensor& t = call.tensors.at(name);
      fwrite(t.memory.get(), 1, t.bytes, stdout);
    }
  }
  fflush(stdout);
}

}  // namespace

// An argument of the plain program is a list of kernels to run from PTX (ptx/runtime/launch.h).
int main([[maybe_unused]] int argc, [[maybe_unused]] char** argv) {
#ifdef SIMT_PTX
  if (argc > 1) ptx::run_from_ptx(argv[1]);
#endif
  for (;;) answer_call();
}
