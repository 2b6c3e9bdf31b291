// SPDX-License-Identifier: Apache-2.0
#include "cpu/backend.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <string_view>

#include "common/check.h"
#include "cpu/attention/attention_plan.h"
#include "cpu/kernel_table.h"
#include "cpu/runtime/program.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/runtime/topology.h"
#include "cpu/sampling/sample_workspace.h"
#include "ops.h"

namespace lampo::cpu {
namespace {

const KernelTable* find_table(const std::string& isa) {
  for (const KernelTable* table : {
           &baseline::kTable,
#if defined(LAMPO_HAVE_ISA_AVX2)
           &avx2::kTable,
#endif
#if defined(LAMPO_HAVE_ISA_AVX512)
           &avx512::kTable,
#endif
       }) {
    if (isa == table->isa) return table;
  }
  return nullptr;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const KernelTable& choose_table(const std::string& isa, const char* argument) {
  const std::vector<std::string> runnable = runnable_isas();
  for (const std::string& name : runnable) {
    if (name == isa) return *find_table(isa);
  }
  const std::string got = std::string(argument) + "='" + isa + "': ";
  if (find_table(isa) != nullptr) {
    throw BackendError(got + "this CPU lacks its instructions (it can run " + join(runnable) + ")");
  }
  throw ArgumentError(got + "unknown, expected one of " + join(compiled_isas()));
}

std::atomic<const KernelTable*> current_table{nullptr};

// Bytes that an op moves in and out, every input once: for profiles, and for the number of threads
// to wake.

int64_t bytes_of(const RmsNormParams& p) {
  return p.num_tokens * p.hidden_size * (p.residual != nullptr ? 4 : 2) * size_of(p.dtype);
}
int64_t bytes_of(const LayerNormParams& p) {
  return p.num_tokens * p.hidden_size * (p.residual != nullptr ? 4 : 2) * size_of(p.dtype);
}
int64_t bytes_of(const ActivationParams& p) {
  return p.num_tokens * p.size * (p.gated ? 3 : 2) * size_of(p.dtype);
}
int64_t bytes_of(const SigmoidMulParams& p) {
  return 3 * p.num_tokens * p.num_heads * p.head_dim * size_of(p.dtype);
}
int64_t num_active(const StateBatch& batch) {
  int64_t count = 0;
  for (int64_t seq = 0; seq < batch.batch_size; ++seq) {
    count += batch.cu_seqlens_q[seq] < batch.cu_seqlens_q[seq + 1];
  }
  return count;
}
int64_t bytes_of(const CausalConvParams& p) {
  const int64_t streams = 2 + (p.gate_in != nullptr) + (p.gate_out != nullptr);
  const int64_t per_state = 2 * (p.width - 1) * 4;
  return (streams * p.batch.num_tokens * size_of(p.dtype) + num_active(p.batch) * per_state) *
         p.num_channels;
}
int64_t bytes_of(const GatedDeltaParams& p) {
  const int64_t keys = 2 * p.num_key_heads * p.key_dim;
  const int64_t values = (p.gate != nullptr ? 3 : 2) * p.num_value_heads * p.value_dim;
  const int64_t per_state = 2 * 4 * p.num_value_heads * p.key_dim * p.value_dim;
  return p.batch.num_tokens * (keys + values) * size_of(p.dtype) + num_active(p.batch) * per_state;
}
int64_t bytes_of(const AppendKvParams& p) {
  const int64_t kv = 2 * p.num_kv_heads * (size_of(p.dtype) + size_of(p.cache_dtype));
  return p.num_tokens * p.head_dim * (2 * p.num_qo_heads * size_of(p.dtype) + kv);
}
int64_t bytes_of(const PagedAttentionParams& p) {
  int64_t num_keys = 0;
  for (int64_t seq = 0; seq < p.batch_size; ++seq) {
    const int64_t num_tokens = p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq];
    const int64_t seq_len = p.seq_lens[seq];
    if (num_tokens == 0) continue;
    const auto seen = keys_seen_by_any(p.mask, seq_len - num_tokens, seq_len - 1, seq_len);
    num_keys += seen.end - seen.begin;
  }
  return 2 *
         (num_keys * p.num_kv_heads * size_of(p.cache_dtype) +
          p.num_tokens * p.num_qo_heads * size_of(p.dtype)) *
         p.head_dim;
}
int64_t bytes_of(const MergeStatesParams& p) {
  return (p.num_splits * 4 + size_of(p.dtype)) * p.num_tokens * p.num_heads * p.head_dim;
}
int64_t bytes_of(const LinearParams& p) {
  const int64_t weight =
      p.packed ? p.out_features * strip_layout(p.format, p.in_features).strip_bytes / kStripRows
               : p.out_features * p.in_features * size_of(p.weight_dtype);
  int64_t weights = p.num_experts == 0 ? 1 : 0;  // that are read: of experts with rows
  for (int64_t expert = 0; expert < p.num_experts; ++expert) {
    weights += p.expert_offsets[expert + 1] > p.expert_offsets[expert];
  }
  const int64_t columns = p.silu_mul ? p.out_features / 2 : p.out_features;
  return weights * weight +
         p.num_tokens * (p.in_features * size_of(p.dtype) +
                         columns * size_of(p.out_dtype) * (p.accumulate ? 2 : 1));
}
int64_t bytes_of(const RouteParams& p) { return p.num_tokens * (p.num_experts + 4 * p.top_k) * 4; }
int64_t bytes_of(const CombineParams& p) {
  const int64_t row = p.top_k * size_of(p.y_dtype) + (p.accumulate ? 2 : 1) * size_of(p.dtype);
  return p.num_tokens * p.size * row;
}
int64_t bytes_of(const PackWeightParams& p) {
  const StripLayout layout = strip_layout(p.format, p.in_features);
  return p.rows *
         (p.in_features / layout.block_size * layout.block_bytes + layout.strip_bytes / kStripRows);
}
int64_t bytes_of(const QuantizeWeightParams& p) { return p.rows * p.in_features * 64; }
int64_t bytes_of(const EmbeddingParams& p) {
  return p.num_tokens * p.hidden_size * 2 * size_of(p.dtype);
}
int64_t bytes_of(const SampleParams& p) { return p.batch_size * p.vocab_size * size_of(p.dtype); }
int64_t bytes_of(const TokenLogprobsParams& p) {
  return p.batch_size * p.vocab_size * size_of(p.dtype);
}

/// Work below which an op stays on one thread: waking the workers costs some microseconds.
constexpr int64_t kWorkWorthATeam = 64 * 1024;

/// Runs an op, and records it if the calling thread is recording a program. work: bytes moved, or
/// an equivalent of other work.
template <class Params>
void launch(std::string_view name, Kernel<Params> kernel, const Params& params, int64_t work) {
  if (work < kWorkWorthATeam) {
    kernel(params, Team{});
  } else {
    run_team([&](const Team& team) { kernel(params, team); });
  }
  if (Program* program = recording_program()) {
    program->add({.name = std::string(name),
                  .run = [=](const Team& team) { kernel(params, team); },
                  .bytes = [=] { return bytes_of(params); }});
  }
}

template <class Params>
void launch(std::string_view name, Kernel<Params> kernel, const Params& params) {
  launch(name, kernel, params, bytes_of(params));
}

std::string describe(const LinearParams& p) {
  const bool experts = p.num_experts > 0;
  return (experts ? "expert_linear [" + std::to_string(p.num_experts) + ", " : "linear [") +
         std::to_string(p.out_features) + ", " + std::to_string(p.in_features) + "] " +
         (p.packed ? name_of(p.format) : name_of(p.weight_dtype));
}

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = current_table.load(std::memory_order_acquire);
  if (table != nullptr) return *table;
  const char* forced = std::getenv("LAMPO_CPU_ISA");
  const std::string isa = forced != nullptr && *forced != '\0' ? forced : runnable_isas().back();
  table = &choose_table(isa, "LAMPO_CPU_ISA");
  current_table.store(table, std::memory_order_release);
  return *table;
}

void rms_norm(const RmsNormParams& p) { launch("rms_norm", kernels().rms_norm, p); }

void layer_norm(const LayerNormParams& p) { launch("layer_norm", kernels().layer_norm, p); }

void activation(const ActivationParams& p) { launch("activation", kernels().activation, p); }

void sigmoid_mul(const SigmoidMulParams& p) { launch("sigmoid_mul", kernels().sigmoid_mul, p); }

void causal_conv(const CausalConvParams& p) { launch("causal_conv", kernels().causal_conv, p); }

void gated_delta(const GatedDeltaParams& p) {
  // A multiply-add of a state's element costs about as much as moving a byte of it.
  const int64_t work = p.batch.num_tokens * p.num_value_heads * p.key_dim * p.value_dim;
  launch("gated_delta", kernels().gated_delta, p, work);
}

void append_kv(const AppendKvParams& p) { launch("append_kv", kernels().append_kv, p); }

void paged_attention(const PagedAttentionParams& p) {
  // Pairs of a query row and a key cost about as much as moving a quarter of the key.
  int64_t work = 0;
  for (int64_t seq = 0; seq < p.batch_size; ++seq) {
    const int64_t num_tokens = p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq];
    work += num_tokens * p.num_qo_heads * p.seq_lens[seq] * p.head_dim;
  }
  launch("paged_attention", kernels().paged_attention, p, work);
}

int64_t paged_attention_workspace_size(int64_t group_size, int64_t head_dim, int64_t max_seq_len) {
  return attention_workspace_bytes(num_threads(), group_size, head_dim, max_seq_len);
}

void merge_states(const MergeStatesParams& p) { launch("merge_states", kernels().merge_states, p); }

void linear(const LinearParams& p) {
  const KernelTable& table = kernels();
  const Kernel<LinearParams> kernel = p.packed ? table.linear_packed : table.linear;
  if (recording_program() == nullptr) return launch("linear", kernel, p);
  launch(describe(p), kernel, p);
}

void route_tokens(const RouteParams& p) { launch("route_tokens", kernels().route_tokens, p); }
void combine_experts(const CombineParams& p) {
  launch("combine_experts", kernels().combine_experts, p);
}

void pack_weight(const PackWeightParams& p) { launch("pack_weight", kernels().pack_weight, p); }
void quantize_weight(const QuantizeWeightParams& p) {
  launch("quantize_weight", kernels().quantize_weight, p);
}

void embedding(const EmbeddingParams& p) { launch("embedding", kernels().embedding, p); }

void sample(const SampleParams& p) { launch("sample", kernels().sample, p); }

void token_logprobs(const TokenLogprobsParams& p) {
  launch("token_logprobs", kernels().token_logprobs, p);
}

int64_t sampling_workspace_size(int64_t vocab_size) {
  return sample_workspace_size(vocab_size, num_threads());
}

}  // namespace lampo::cpu

namespace lampo {

std::string cpu_isa() { return cpu::kernels().isa; }

void set_cpu_isa(const std::string& isa) {
  cpu::current_table.store(&cpu::choose_table(isa, "isa"), std::memory_order_release);
}

double peak_rate(const std::string& name) {
  constexpr int64_t kRounds = 400'000;
  const cpu::Products products = name == "f32"    ? cpu::Products::kF32
                                 : name == "bf16" ? cpu::Products::kBF16
                                                  : cpu::Products::kInt8;
  check_that(name == "int8" || products != cpu::Products::kInt8, "products",
             "expected f32, bf16 or int8, got '" + name + "'");
  std::atomic<int64_t> operations{0};
  const auto start = std::chrono::steady_clock::now();
  cpu::run_team([&](const cpu::Team&) { operations += cpu::kernels().peak(products, kRounds); });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(operations) / seconds.count();
}

}  // namespace lampo
