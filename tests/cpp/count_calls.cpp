// SPDX-License-Identifier: Apache-2.0
// One call of each op and variant, for scripts/count_instructions to count. A case is prepared and
// called once before; then run_case() calls it, and valgrind counts within that function alone.
// Prints the compiler, then the name of each case in the order of the calls.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "ops.h"

/// The function that valgrind counts.
extern "C" [[gnu::noinline]] void run_case(const std::function<void()>& call) { call(); }

namespace {

using lampo::DType;
using lampo::TensorView;
using Shape = std::initializer_list<int64_t>;

/// A contiguous tensor with memory of its own, at a multiple of 64 bytes.
class Tensor {
 public:
  Tensor(DType dtype, Shape shape) {
    view_.dtype = dtype;
    view_.ndim = static_cast<int>(shape.size());
    int64_t i = 0, stride = 1;
    for (int64_t size : shape) view_.shape[i++] = size;
    while (i-- > 0) {
      view_.stride[i] = stride;
      stride *= view_.shape[i];
    }
    const size_t bytes = static_cast<size_t>(stride * lampo::size_of(dtype) + 63) / 64 * 64;
    view_.data = std::aligned_alloc(64, bytes);
    std::memset(view_.data, 0, bytes);
  }
  Tensor(const Tensor&) = delete;
  ~Tensor() { std::free(view_.data); }

  operator const TensorView&() const { return view_; }
  const TensorView* get() const { return &view_; }

  template <class T>
  Tensor& fill(const std::function<T(int64_t)>& value) {
    for (int64_t i = 0; i < view_.numel(); ++i) view_.ptr<T>()[i] = value(i);
    return *this;
  }

 private:
  TensorView view_;
};

uint64_t state = 1;

/// Uniform in [-1, 1), the same sequence in every run.
float uniform() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
}

Tensor& randomize(Tensor& tensor) {
  const TensorView& view = tensor;
  if (view.dtype == DType::kF32) return tensor.fill<float>([](int64_t) { return uniform(); });
  if (view.dtype == DType::kBF16) {
    return tensor.fill<uint16_t>([](int64_t) {
      const float value = uniform();
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      return static_cast<uint16_t>(bits >> 16);
    });
  }
  return tensor.fill<int8_t>([](int64_t) { return static_cast<int8_t>(uniform() * 127); });
}

void run(const std::string& name, const std::function<void()>& call) {
  call();  // first calls start threads and choose kernels
  run_case(call);
  std::printf("%s\n", name.c_str());
}

void elementwise() {
  for (const auto& [dtype, suffix] : {std::pair{DType::kF32, "f32"}, {DType::kBF16, "bf16"}}) {
    Tensor x(dtype, {16, 4096}), weight(dtype, {4096}), out(dtype, {16, 4096});
    Tensor half(dtype, {16, 2048});
    randomize(x), randomize(weight);
    const std::string end = std::string(" ") + suffix;
    run("rms_norm" + end, [&] { lampo::rms_norm(x, weight, nullptr, out, 1e-6); });
    run("layer_norm" + end,
        [&] { lampo::layer_norm(x, weight, weight.get(), nullptr, out, 1e-6); });
    run("silu_mul" + end, [&] { lampo::silu_mul(x, half); });
    run("gelu_mul" + end, [&] { lampo::gelu_mul(x, half, true); });
    run("gelu" + end, [&] { lampo::gelu(x, out, false); });
  }
}

struct Attention {
  const char* name;
  DType cache;
  int64_t num_tokens, seq_len, num_qo_heads, num_kv_heads, head_dim;
};

void attention(const Attention& a) {
  constexpr int64_t kPage = 64;
  const int64_t pages = (a.seq_len + kPage - 1) / kPage;
  Tensor q(DType::kBF16, {a.num_tokens, a.num_qo_heads, a.head_dim});
  Tensor out(DType::kBF16, {a.num_tokens, a.num_qo_heads, a.head_dim});
  Tensor k(a.cache, {pages, a.num_kv_heads, kPage, a.head_dim});
  Tensor v(a.cache, {pages, a.num_kv_heads, kPage, a.head_dim});
  Tensor scale(DType::kF32, {pages, a.num_kv_heads, kPage});
  Tensor table(DType::kI32, {1, pages}), lens(DType::kI32, {1}), cu(DType::kI32, {2});
  randomize(q), randomize(k), randomize(v);
  scale.fill<float>([](int64_t) { return 0.01f; });
  table.fill<int32_t>([&](int64_t i) { return static_cast<int32_t>(pages - 1 - i); });
  lens.fill<int32_t>([&](int64_t) { return static_cast<int32_t>(a.seq_len); });
  cu.fill<int32_t>([&](int64_t i) { return static_cast<int32_t>(i * a.num_tokens); });
  lampo::AttentionOptions options;
  options.softmax_scale = 0.1;
  const int64_t size = lampo::paged_attention_workspace_size(
      {}, {a.num_qo_heads, a.num_kv_heads, a.head_dim, pages * kPage, 1, a.num_tokens});
  Tensor workspace(DType::kU8, {size});
  const TensorView* scales = a.cache == DType::kI8 ? scale.get() : nullptr;
  run(std::string("paged_attention ") + a.name, [&] {
    lampo::paged_attention(q, k, v, table, lens, cu, options, nullptr, scales, scales, nullptr, out,
                           workspace);
  });
}

void append(DType cache, const char* name) {
  Tensor q(DType::kBF16, {32, 32, 128}), k(DType::kBF16, {32, 8, 128}),
      v(DType::kBF16, {32, 8, 128});
  Tensor k_cache(cache, {1, 8, 64, 128}), v_cache(cache, {1, 8, 64, 128});
  Tensor scale(DType::kF32, {1, 8, 64}), slots(DType::kI64, {32}), angles(DType::kF32, {32, 128});
  randomize(q), randomize(k), randomize(v), randomize(angles);
  slots.fill<int64_t>([](int64_t i) { return 2 * i; });
  Tensor positions(DType::kI64, {32});
  positions.fill<int64_t>([](int64_t i) { return i; });
  const TensorView* scales = cache == DType::kI8 ? scale.get() : nullptr;
  run(std::string("append_kv ") + name, [&] {
    lampo::append_kv(q.get(), k, v, k_cache, v_cache, slots, positions.get(), angles.get(), false,
                     cache == DType::kI8, nullptr, nullptr, 1e-6, scales, scales);
  });
}

void merge() {
  Tensor parts(DType::kF32, {8, 4, 32, 128}), lse(DType::kF32, {8, 4, 32});
  Tensor out(DType::kBF16, {4, 32, 128});
  randomize(parts), randomize(lse);
  run("merge_states bf16", [&] { lampo::merge_states(parts, lse, out, nullptr); });
}

void dense_linear(DType dtype, const char* name, int64_t rows) {
  Tensor x(DType::kF32, {rows, 576}), weight(dtype, {512, 576}), out(DType::kF32, {rows, 512});
  Tensor workspace(DType::kU8, {lampo::linear_workspace_size(rows, 576)});
  randomize(x), randomize(weight);
  run("linear " + std::string(name) + ", rows " + std::to_string(rows),
      [&] { lampo::linear(x, weight, nullptr, {}, out, workspace.get()); });
}

void packed_linear(const std::string& format_name, int64_t rows, int bits) {
  constexpr int64_t kRows = 512, kColumns = 576;
  const lampo::WeightFormat format = lampo::parse_weight_format(format_name);
  const int64_t block = lampo::packed_block_bytes(format);
  Tensor blocks(DType::kU8, {kRows, kColumns / 32 * block});
  blocks.fill<uint8_t>([&](int64_t i) {
    const int64_t at = i % block;  // of two bytes, or four with a minimum: f16 near 0.01
    if (at < (format_name == "q4_1" ? 4 : 2)) return at % 2 == 0 ? uint8_t(0x1f) : uint8_t(0x21);
    return static_cast<uint8_t>(128 + uniform() * 127);
  });
  Tensor weight(DType::kU8, {kRows / 16, lampo::packed_strip_bytes(format, kColumns)});
  Tensor x(DType::kF32, {rows, kColumns}), out(DType::kF32, {rows, kRows});
  Tensor workspace(DType::kU8, {lampo::linear_workspace_size(rows, kColumns)});
  randomize(x);
  lampo::pack_weight(blocks, format, weight);
  lampo::LinearOptions options;
  options.activation_bits = bits;
  const std::string end = ", rows " + std::to_string(rows) + ", bits " + std::to_string(bits);
  run("linear " + format_name + end,
      [&] { lampo::linear_packed(x, weight, format, nullptr, options, out, workspace); });
  if (rows > 1 || bits != 9) return;
  run("pack_weight " + format_name, [&] { lampo::pack_weight(blocks, format, weight); });
  Tensor ids(DType::kI32, {16}), rows_out(DType::kF32, {16, kColumns});
  ids.fill<int32_t>([](int64_t i) { return static_cast<int32_t>(31 * i); });
  run("embedding " + format_name,
      [&] { lampo::embedding_packed(ids, weight, format, kRows, rows_out, false); });
}

void scales() {
  Tensor x(DType::kBF16, {16, 4096}), out(DType::kBF16, {16, 4096}), positions(DType::kI64, {16});
  randomize(x);
  positions.fill<int64_t>([](int64_t i) { return 5000 * i; });
  run("scale bf16", [&] { lampo::scale(x, out, 0.5, 30.0); });
  run("scale_by_position bf16", [&] { lampo::scale_by_position(x, positions, out, 0.1, 16384); });
}

/// Ops of a sequence with a state, at its first 16 tokens.
void recurrent() {
  constexpr int64_t kTokens = 16, kHeads = 4, kSize = 128, kChannels = 1024;
  const auto make = [](Shape shape) { return Tensor(DType::kBF16, shape); };
  Tensor q = make({kTokens, kHeads, kSize}), k = make({kTokens, kHeads, kSize});
  Tensor v = make({kTokens, kHeads, kSize}), out = make({kTokens, kHeads, kSize});
  Tensor a = make({kTokens, kHeads}), b = make({kTokens, kHeads});
  Tensor decay(DType::kF32, {kHeads}), state(DType::kF32, {1, kHeads, kSize, kSize});
  Tensor slots(DType::kI64, {1}), lens(DType::kI32, {1}), cu(DType::kI32, {2});
  randomize(q), randomize(k), randomize(v), randomize(a), randomize(b);
  decay.fill<float>([](int64_t) { return -0.1f; });
  lens.fill<int32_t>([](int64_t) { return static_cast<int32_t>(kTokens); });
  cu.fill<int32_t>([](int64_t i) { return static_cast<int32_t>(kTokens * i); });
  run("gated_delta bf16", [&] {
    lampo::gated_delta(q, k, v, a, b, decay, decay, state, slots, lens, cu, false, 0.1, nullptr,
                       nullptr, 0.0, out);
  });
  run("sigmoid_mul bf16", [&] { lampo::sigmoid_mul(q, k, out); });
  Tensor x = make({kTokens, kChannels}), y = make({kTokens, kChannels});
  Tensor weight(DType::kF32, {4, kChannels}), inputs(DType::kF32, {1, 3, kChannels});
  randomize(x), randomize(weight);
  run("causal_conv bf16", [&] {
    lampo::causal_conv(x, weight, nullptr, inputs, slots, lens, cu, nullptr, nullptr, true, y);
  });
}

void experts() {
  constexpr int64_t kTokens = 4, kTopK = 2, kExperts = 8, kRows = 64, kColumns = 256;
  Tensor logits(DType::kF32, {kTokens, kExperts}), weights(DType::kF32, {kTokens, kTopK});
  Tensor chosen(DType::kI32, {kTokens, kTopK}), rows(DType::kI32, {kTokens, kTopK});
  Tensor x_rows(DType::kI32, {kTokens * kTopK}), offsets(DType::kI32, {kExperts + 1});
  randomize(logits);
  run("route_tokens",
      [&] { lampo::route_tokens(logits, true, {chosen, weights, rows, x_rows, offsets}); });
  Tensor x(DType::kF32, {kTokens, kColumns}), weight(DType::kF32, {kExperts * kRows, kColumns});
  Tensor y(DType::kF32, {kTokens * kTopK, kRows}), out(DType::kF32, {kTokens, kRows});
  Tensor workspace(DType::kU8, {lampo::linear_workspace_size(kTokens * kTopK, kColumns)});
  randomize(x), randomize(weight);
  run("expert_linear f32", [&] {
    lampo::expert_linear(x, weight, nullptr, nullptr, offsets, x_rows.get(), {}, y, workspace);
  });
  run("combine_experts f32", [&] { lampo::combine_experts(y, rows, weights, false, out); });
}

void sampling() {
  constexpr int64_t kRows = 2, kVocab = 32768;
  Tensor logits(DType::kF32, {kRows, kVocab}), ones(DType::kF32, {kRows}), p(DType::kF32, {kRows});
  Tensor zeros(DType::kI64, {kRows}), tokens(DType::kI64, {kRows}), status(DType::kI32, {kRows});
  Tensor workspace(DType::kU8, {lampo::sampling_workspace_size(kVocab, {})});
  Tensor logprob(DType::kF32, {kRows}), rank(DType::kI32, {kRows}), greedy(DType::kF32, {kRows});
  Tensor top_ids(DType::kI32, {kRows, 20}), top_logprobs(DType::kF32, {kRows, 20});
  logits.fill<float>([](int64_t) { return 4 * (uniform() + uniform() + uniform()); });
  ones.fill<float>([](int64_t) { return 1.0f; });
  p.fill<float>([](int64_t) { return 0.9f; });
  const auto draw = [&](const Tensor& temperature, const TensorView* top_p) {
    lampo::sample({.logits = logits,
                   .temperature = temperature,
                   .top_p = top_p,
                   .seeds = zeros.get(),
                   .positions = zeros.get(),
                   .token_ids = tokens,
                   .status = status,
                   .workspace = workspace});
  };
  run("sample greedy", [&] { draw(greedy, nullptr); });
  run("sample", [&] { draw(ones, nullptr); });
  run("sample top-p 0.9", [&] { draw(ones, p.get()); });
  run("token_logprobs top 20", [&] {
    lampo::token_logprobs(logits, zeros, logprob, rank, top_ids, top_logprobs, workspace);
  });
}

}  // namespace

int main() {
  std::printf("compiler %s, %s\n", __VERSION__, lampo::cpu_isa().c_str());
  elementwise();
  for (const Attention& a : {Attention{"decode bf16 32/8x128", DType::kBF16, 1, 512, 32, 8, 128},
                             Attention{"decode int8 32/8x128", DType::kI8, 1, 512, 32, 8, 128},
                             Attention{"decode bf16 9/3x64", DType::kBF16, 1, 512, 9, 3, 64},
                             Attention{"prefill bf16 9/3x64", DType::kBF16, 128, 128, 9, 3, 64}}) {
    attention(a);
  }
  append(DType::kBF16, "bf16");
  append(DType::kI8, "int8");
  merge();
  for (const int64_t rows : {1, 8}) {
    dense_linear(DType::kF32, "f32", rows);
    dense_linear(DType::kBF16, "bf16", rows);
    for (const char* format : {"q4_0", "q4_1", "q8_0"}) {
      for (const int bits : {8, 9, 16}) packed_linear(format, rows, bits);
    }
  }
  scales();
  recurrent();
  experts();
  sampling();
  return 0;
}
