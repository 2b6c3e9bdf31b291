// SPDX-License-Identifier: Apache-2.0
// Runs ops of csrc/cuda/ on the CPU for tests/test_cuda_on_cpu.py: reads calls from stdin, answers
// on stdout. A call and its answer:
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
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/check.h"
#include "cuda/backend.h"
#include "kernels/self_test.h"
#include "simt/executor.h"
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace {

using lampo::TensorView;

constexpr int kElementBytes[] = {4, 2, 2, 1, 1, 1, 4, 8, 1};  // by DType

struct Tensor {
  std::unique_ptr<char, decltype(&free)> memory{nullptr, &free};
  size_t bytes = 0;
  TensorView view;
};

struct Call {
  std::map<std::string, double> numbers;
  std::map<std::string, Tensor> tensors;
  std::vector<std::string> order;  // of the tensors

  double number(const char* name) const { return numbers.at(name); }
  int integer(const char* name) const { return static_cast<int>(numbers.at(name)); }
  const TensorView& operator[](const char* name) const { return tensors.at(name).view; }
  const TensorView* optional(const char* name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second.view;
  }
};

void rms_norm(const Call& c) {
  const TensorView &x = c["x"], &out = c["out"];
  const TensorView* residual = c.optional("residual");
  lampo::cuda::rms_norm(
      {
          .dtype = x.dtype,
          .weight_dtype = c["weight"].dtype,
          .num_tokens = x.shape[0],
          .hidden_size = x.shape[1],
          .eps = static_cast<float>(c.number("eps")),
          .x = x.data,
          .weight = c["weight"].data,
          .residual = residual != nullptr ? residual->data : nullptr,
          .out = out.data,
          .stride_x_token = x.stride[0],
          .stride_residual_token = residual != nullptr ? residual->stride[0] : 0,
          .stride_out_token = out.stride[0],
      },
      0, {});
}

void silu_mul(const Call& c) {
  const TensorView &x = c["x"], &out = c["out"];
  lampo::cuda::silu_mul(
      {
          .dtype = x.dtype,
          .activation = lampo::Activation::kSilu,
          .gated = true,
          .num_tokens = out.shape[0],
          .size = out.shape[1],
          .x = x.data,
          .out = out.data,
          .stride_x_token = x.stride[0],
          .stride_out_token = out.stride[0],
      },
      0, {});
}

void merge_states(const Call& c) {
  const TensorView &partial = c["out_partial"], &lse_partial = c["lse_partial"], &out = c["out"];
  const TensorView* lse = c.optional("lse");
  lampo::cuda::merge_states(
      {
          .dtype = out.dtype,
          .num_splits = partial.shape[0],
          .num_tokens = partial.shape[1],
          .num_heads = partial.shape[2],
          .head_dim = partial.shape[3],
          .out_partial = partial.ptr<float>(),
          .lse_partial = lse_partial.ptr<float>(),
          .out = out.data,
          .lse = lse != nullptr ? lse->ptr<float>() : nullptr,
          .stride_out_partial_split = partial.stride[0],
          .stride_out_partial_token = partial.stride[1],
          .stride_out_partial_head = partial.stride[2],
          .stride_lse_partial_split = lse_partial.stride[0],
          .stride_lse_partial_token = lse_partial.stride[1],
          .stride_out_token = out.stride[0],
          .stride_out_head = out.stride[1],
          .stride_lse_token = lse != nullptr ? lse->stride[0] : 0,
      },
      0, {});
}

namespace self_test = lampo::cuda::self_test;

const std::map<std::string, void (*)(const Call&)> kOps = {
    {"rms_norm", rms_norm},
    {"silu_mul", silu_mul},
    {"merge_states", merge_states},
    {"reverse",
     [](const Call& c) {
       self_test::reverse(c["x"].ptr<float>(), c["out"].ptr<float>(),
                          static_cast<int>(c["x"].shape[0]), c.integer("fault"));
     }},
    {"gather_pages",
     [](const Call& c) {
       self_test::gather_pages(c["cache"].ptr<float>(), c["pages"].ptr<int>(),
                               c["out"].ptr<float>(), static_cast<int>(c["out"].shape[0]),
                               static_cast<int>(c["cache"].shape[1]));
     }},
    {"stage_sum",
     [](const Call& c) {
       self_test::stage_sum(c["x"].ptr<float>(), c["out"].ptr<float>(),
                            static_cast<int>(c["x"].shape[0]), static_cast<int>(c["x"].shape[1]),
                            c.integer("fault"));
     }},
    {"multiply",
     [](const Call& c) {
       self_test::multiply(c["a"].dtype, c["a"].data, c["b"].data, c["out"].data,
                           c.integer("by_ldmatrix") != 0, c.integer("fault"));
     }},
    {"warp_functions",
     [](const Call& c) {
       self_test::warp_functions(c["x"].ptr<int>(), c["out"].ptr<int>(), c.integer("fault"));
     }},
    {"cluster_sum",
     [](const Call& c) {
       self_test::cluster_sum(c["x"].ptr<float>(), c["out"].ptr<float>(),
                              static_cast<int>(c["x"].shape[0]), c.integer("cluster"),
                              c.integer("fault"));
     }},
    {"histogram",
     [](const Call& c) {
       self_test::histogram(c["x"].ptr<int>(), c["counts"].ptr<int>(), c["arrived"].ptr<int>(),
                            static_cast<int>(c["x"].shape[0]),
                            static_cast<int>(c["counts"].shape[0]) - 1, c.integer("fault"));
     }},
    {"bad_launch", [](const Call& c) { self_test::bad_launch(c.integer("fault")); }},
};

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
  t.memory.reset(static_cast<char*>(malloc(t.bytes)));
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
  for (const auto& [name, tensor] : call.tensors) guard_gaps(tensor, true);
  try {
    kOps.at(words[1])(call);
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

int main() {
  for (;;) answer_call();
}
