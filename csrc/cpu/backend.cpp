// SPDX-License-Identifier: Apache-2.0
#include "cpu/backend.h"

#include <atomic>
#include <cstdlib>

#include "common/check.h"
#include "cpu/attention_plan.h"
#include "cpu/kernel_table.h"
#include "cpu/sample_workspace.h"
#include "cpu/thread_pool.h"
#include "cpu/topology.h"
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

/// Waking the workers costs some microseconds: ops that move less than this stay on one thread.
constexpr int64_t kBytesWorthATeam = 64 * 1024;

template <class Params>
void launch(Kernel<Params> kernel, const Params& params, int64_t bytes) {
  run_team([&](const Team& team) { kernel(params, team); }, bytes < kBytesWorthATeam ? 1 : 0);
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

void rms_norm(const RmsNormParams& p) {
  launch(kernels().rms_norm, p, p.num_tokens * p.hidden_size * 2 * size_of(p.dtype));
}

void layer_norm(const LayerNormParams& p) {
  launch(kernels().layer_norm, p, p.num_tokens * p.hidden_size * 2 * size_of(p.dtype));
}

void activation(const ActivationParams& p) {
  launch(kernels().activation, p, p.num_tokens * p.size * 3 * size_of(p.dtype));
}

void append_kv(const AppendKvParams& p) {
  const int64_t heads = 2 * p.num_qo_heads + 4 * p.num_kv_heads;
  launch(kernels().append_kv, p, p.num_tokens * heads * p.head_dim * size_of(p.dtype));
}

void paged_attention(const PagedAttentionParams& p) {
  // Pairs of a query row and a key cost about as much as moving a quarter of the key.
  int64_t bytes = 0;
  for (int64_t seq = 0; seq < p.batch_size; ++seq) {
    const int64_t num_tokens = p.cu_seqlens_q[seq + 1] - p.cu_seqlens_q[seq];
    bytes += num_tokens * p.num_qo_heads * p.seq_lens[seq] * p.head_dim;
  }
  launch(kernels().paged_attention, p, bytes);
}

int64_t paged_attention_workspace_size(int64_t group_size, int64_t head_dim, int64_t max_seq_len) {
  return attention_workspace_bytes(num_threads(), group_size, head_dim, max_seq_len);
}

void merge_states(const MergeStatesParams& p) {
  launch(kernels().merge_states, p, p.num_splits * p.num_tokens * p.num_heads * p.head_dim * 4);
}

void linear(const LinearParams& p) {
  launch(kernels().linear, p, p.out_features * p.in_features * size_of(p.weight_dtype));
}

void linear_packed(const LinearPackedParams& p) {
  launch(kernels().linear_packed, p, p.out_features * p.in_features / 2);
}

void pack_weight(const PackWeightParams& p) {
  launch(kernels().pack_weight, p, p.rows * p.in_features / 2);
}

void embedding(const EmbeddingParams& p) {
  launch(kernels().embedding, p, p.num_tokens * p.hidden_size * 2 * size_of(p.dtype));
}

void sample(const SampleParams& p) {
  launch(kernels().sample, p, p.batch_size * p.vocab_size * size_of(p.dtype));
}

void token_logprobs(const TokenLogprobsParams& p) {
  launch(kernels().token_logprobs, p, p.batch_size * p.vocab_size * size_of(p.dtype));
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

}  // namespace lampo
