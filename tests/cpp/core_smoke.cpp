// SPDX-License-Identifier: Apache-2.0
// A program of plain C++ that links the core alone: no Python, no torch. Exits 0 if what it
// computes on every instruction set, and says of CUDA, is as it should be.
#include <cmath>
#include <cstdio>
#include <vector>

#include "common/check.h"
#include "cuda_info.h"
#include "ops.h"

namespace {

int failures = 0;

void expect(bool ok, const char* what) {
  std::printf("%s %s\n", ok ? "ok  " : "FAIL", what);
  if (!ok) ++failures;
}

lampo::TensorView matrix(std::vector<float>& data, int64_t rows, int64_t columns) {
  lampo::TensorView view;
  view.data = data.data();
  view.ndim = 2;
  view.shape[0] = rows;
  view.shape[1] = columns;
  view.stride[0] = columns;
  view.stride[1] = 1;
  return view;
}

lampo::TensorView row(std::vector<float>& data) {
  lampo::TensorView view = matrix(data, 1, static_cast<int64_t>(data.size()));
  view.ndim = 1;
  view.shape[0] = view.shape[1];
  view.stride[0] = 1;
  return view;
}

float error_of(const std::vector<float>& actual, const std::vector<float>& expected) {
  float worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    worst = std::fmax(worst, std::fabs(actual[i] - expected[i]));
  }
  return worst;
}

void check_ops() {
  constexpr int kTokens = 3;
  constexpr int kSize = 37;
  std::vector<float> x(kTokens * kSize), weight(kSize, 0.5f), out(x.size()), expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
  for (int t = 0; t < kTokens; ++t) {
    float squares = 0;
    for (int i = 0; i < kSize; ++i) squares += x[t * kSize + i] * x[t * kSize + i];
    const float scale = 0.5f / std::sqrt(squares / kSize + 1e-5f);
    for (int i = 0; i < kSize; ++i) expected[t * kSize + i] = x[t * kSize + i] * scale;
  }
  lampo::rms_norm(matrix(x, kTokens, kSize), row(weight), nullptr, matrix(out, kTokens, kSize),
                  1e-5);
  expect(error_of(out, expected) < 1e-6f, "rms_norm");

  std::vector<float> gated(kTokens * (kSize / 2)), gated_expected(gated.size());
  const int half = kSize / 2;
  lampo::TensorView gate_up = matrix(x, kTokens, 2 * half);
  gate_up.stride[0] = kSize;
  for (int t = 0; t < kTokens; ++t) {
    for (int i = 0; i < half; ++i) {
      const float gate = x[t * kSize + i];
      gated_expected[t * half + i] = gate / (1 + std::exp(-gate)) * x[t * kSize + half + i];
    }
  }
  lampo::silu_mul(gate_up, matrix(gated, kTokens, half));
  expect(error_of(gated, gated_expected) < 1e-6f, "silu_mul");
}

void check_errors() {
  std::vector<float> x(8), out(7);
  bool refused = false;
  try {
    lampo::gelu(matrix(x, 1, 8), matrix(out, 1, 7), false);
  } catch (const lampo::ArgumentError&) {
    refused = true;
  }
  expect(refused, "a wrong shape is an ArgumentError");
}

void check_cuda() {
  const lampo::CudaInfo info = lampo::cuda_info();
  std::printf("     CUDA compiled in: %s (%s)\n     %s\n", info.compiled ? "yes" : "no",
              info.decision.c_str(), info.why.c_str());
  expect(info.compiled == !info.architectures.empty(), "architectures only with CUDA");
  expect(!info.devices.empty() || !info.why.empty(), "a device, or a reason");
}

}  // namespace

int main() {
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    try {
      lampo::set_cpu_isa(isa);
    } catch (const std::exception& error) {
      std::printf("skip %s\n", error.what());
      continue;
    }
    std::printf("---- %s\n", isa);
    check_ops();
  }
  check_errors();
  check_cuda();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
