// SPDX-License-Identifier: Apache-2.0
// Programs and the thread pool under many threads, for sanitizers: a small decoder layer recorded
// and replayed by teams of several sizes, two threads at a time, while a third changes the size of
// the pool. Exits 0 if every result is that of one thread.
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "common/check.h"
#include "cpu/runtime/program.h"
#include "cpu/runtime/thread_pool.h"
#include "ops.h"

namespace {

const lampo::WeightFormat kFormat = lampo::parse_weight_format("q4_0");
constexpr int64_t kTokens = 3, kHidden = 128, kHeads = 4, kKvHeads = 2, kHeadDim = 32;
constexpr int64_t kPageSize = 16, kPages = 6, kSeqLen = 40;

template <class T>
constexpr lampo::DType kType = lampo::DType::kF32;
template <>
constexpr lampo::DType kType<uint8_t> = lampo::DType::kU8;
template <>
constexpr lampo::DType kType<int32_t> = lampo::DType::kI32;
template <>
constexpr lampo::DType kType<int64_t> = lampo::DType::kI64;

/// Memory of its own, at a multiple of 64 bytes, and a contiguous view of it.
template <class T>
class Tensor {
 public:
  Tensor(float scale, std::initializer_list<int64_t> shape) {
    view_.dtype = kType<T>;
    view_.ndim = static_cast<int>(shape.size());
    int64_t at = 0;
    for (const int64_t size : shape) view_.shape[at++] = size;
    int64_t stride = 1;
    for (int i = view_.ndim - 1; i >= 0; --i) {
      view_.stride[i] = stride;
      stride *= view_.shape[i];
    }
    data_.resize(static_cast<size_t>(stride) + 64 / sizeof(T));
    const auto address = reinterpret_cast<uintptr_t>(data_.data());
    view_.data = reinterpret_cast<void*>((address + 63) / 64 * 64);
    for (int64_t i = 0; i < stride; ++i) {
      ptr()[i] = static_cast<T>(scale * std::sin(static_cast<float>(i)));
    }
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  operator const lampo::TensorView&() const { return view_; }
  const lampo::TensorView* operator&() const { return &view_; }
  T* ptr() const { return static_cast<T*>(view_.data); }
  /// Columns [begin, end) of a matrix, as [rows, heads, head_dim].
  lampo::TensorView heads(int64_t begin, int64_t count) const {
    lampo::TensorView part = view_;
    part.data = ptr() + begin * kHeadDim;
    part.ndim = 3;
    part.shape[1] = count;
    part.shape[2] = kHeadDim;
    part.stride[1] = kHeadDim;
    part.stride[2] = 1;
    return part;
  }

 private:
  std::vector<T> data_;
  lampo::TensorView view_;
};

/// One layer over a decode batch of kTokens sequences that share their pages' contents.
struct Layer {
  Tensor<float> x{1.0f, {kTokens, kHidden}};
  Tensor<float> norm{1.0f, {kHidden}};
  Tensor<float> qkv_weight{0.1f, {(kHeads + 2 * kKvHeads) * kHeadDim, kHidden}};
  Tensor<float> qkv{0.0f, {kTokens, (kHeads + 2 * kKvHeads) * kHeadDim}};
  Tensor<float> k_cache{1.0f, {kPages, kKvHeads, kPageSize, kHeadDim}};
  Tensor<float> v_cache{1.0f, {kPages, kKvHeads, kPageSize, kHeadDim}};
  Tensor<float> attended{0.0f, {kTokens, kHeads, kHeadDim}};
  Tensor<float> gate_up_weight{0.1f, {2 * kHidden, kHidden}};
  Tensor<float> activated{0.0f, {kTokens, kHidden}};
  Tensor<uint8_t> blocks{0.0f, {kHidden, kHidden / 32 * 18}};
  Tensor<uint8_t> packed{0.0f, {kHidden / 16, lampo::packed_strip_bytes(kFormat, kHidden)}};
  Tensor<uint8_t> workspace{0.0f, {1 << 20}};
  Tensor<int64_t> slots{0.0f, {kTokens}};
  Tensor<int32_t> page_table{0.0f, {kTokens, 3}};
  Tensor<int32_t> seq_lens{0.0f, {kTokens}};
  Tensor<int32_t> cu_seqlens{0.0f, {kTokens + 1}};

  Layer() {
    for (int64_t i = 0; i < kHidden * (kHidden / 32 * 18); ++i) {
      blocks.ptr()[i] = i % 18 == 1 ? 0x20 : static_cast<uint8_t>(37 * i);  // d near 2^-7
    }
    lampo::pack_weight(blocks, kFormat, packed);
    for (int32_t t = 0; t < kTokens; ++t) {
      cu_seqlens.ptr()[t + 1] = t + 1;
      seq_lens.ptr()[t] = kSeqLen;
      for (int32_t i = 0; i < 3; ++i) page_table.ptr()[t * 3 + i] = i < 2 ? i : 3 + t;
      slots.ptr()[t] = (3 + t) * kPageSize + (kSeqLen - 1) % kPageSize;
    }
    cu_seqlens.ptr()[0] = 0;
  }

  void run() {
    const lampo::LinearOptions normed{.norm_weight = &norm};
    lampo::linear(x, qkv_weight, nullptr, normed, qkv, &workspace);
    const lampo::TensorView q = qkv.heads(0, kHeads), k = qkv.heads(kHeads, kKvHeads);
    lampo::append_kv(&q, k, qkv.heads(kHeads + kKvHeads, kKvHeads), k_cache, v_cache, slots,
                     nullptr, nullptr, false, false, nullptr, nullptr, 0.0, nullptr, nullptr);
    lampo::AttentionOptions options;
    options.softmax_scale = 0.2;
    lampo::paged_attention(q, k_cache, v_cache, page_table, seq_lens, cu_seqlens, options, nullptr,
                           nullptr, nullptr, nullptr, attended, workspace);
    const lampo::LinearOptions gated{.norm_weight = &norm, .silu_mul = true};
    lampo::linear(x, gate_up_weight, nullptr, gated, activated, &workspace);
    lampo::linear_packed(activated, packed, kFormat, nullptr, {.accumulate = true}, x, workspace);
  }
};

/// The residual stream and the attention after `replays` runs, by a program on the pool.
std::vector<float> result(int replays) {
  Layer layer;
  lampo::cpu::Program program;
  program.begin();
  layer.run();
  program.end();
  for (int i = 1; i < replays; ++i) program.replay();
  std::vector<float> values(layer.x.ptr(), layer.x.ptr() + kTokens * kHidden);
  values.insert(values.end(), layer.attended.ptr(), layer.attended.ptr() + kTokens * kHidden);
  return values;
}

bool results_equal(const std::vector<float>& expected, int replays) {
  try {
    return result(replays) == expected;
  } catch (const lampo::BackendError&) {
    return true;  // the pool has changed its size since the recording
  }
}

}  // namespace

int main() {
  constexpr int kReplays = 8;
  lampo::cpu::set_num_threads(1);
  const std::vector<float> expected = result(kReplays);
  bool ok = true;
  for (float value : expected) ok = ok && std::isfinite(value);
  for (const int count : {2, 3, 5}) {
    lampo::cpu::set_num_threads(count);
    for (int i = 0; i < 20; ++i) ok = ok && result(kReplays) == expected;
    bool others = true;
    std::thread other([&] {
      for (int i = 0; i < 20; ++i) others = others && results_equal(expected, kReplays);
    });
    for (int i = 0; i < 20; ++i) ok = ok && results_equal(expected, kReplays);
    other.join();
    ok = ok && others;
  }
  std::thread resizer([] {
    for (int i = 0; i < 40; ++i) lampo::cpu::set_num_threads(1 + i % 4);
  });
  for (int i = 0; i < 20; ++i) ok = ok && results_equal(expected, kReplays);
  resizer.join();
  std::printf("%s programs\n", ok ? "ok  " : "FAIL");
  return ok ? 0 : 1;
}
