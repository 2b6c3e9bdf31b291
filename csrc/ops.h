// SPDX-License-Identifier: Apache-2.0
// The public C++ API: one function per op. A function checks its arguments (ArgumentError and
// TypeMismatch name the wrong one), picks the backend by device, and runs the work: on the CPU
// before it returns, on CUDA in the caller's stream. No op allocates or synchronises. The Python
// docstrings in python/lampo/ops/ give formulas and sources.
#pragma once

#include <string>
#include <vector>

#include "common/formats/formats.h"
#include "common/tensor_view.h"

namespace lampo {

void rms_norm(const TensorView& x,       // [num_tokens, hidden_size] float32 or bfloat16
              const TensorView& weight,  // [hidden_size] float32 or as x
              OptionalTensor residual,   // [num_tokens, hidden_size] as x; += x, then normed
              const TensorView& out,     // [num_tokens, hidden_size] as x
              double eps, Stream stream = {});

void layer_norm(const TensorView& x, const TensorView& weight,
                OptionalTensor bias,  // [hidden_size] as weight
                OptionalTensor residual, const TensorView& out, double eps, Stream stream = {});

void silu_mul(const TensorView& gate_up,  // [num_tokens, 2 * size], gate first
              const TensorView& out,      // [num_tokens, size]
              Stream stream = {});
void gelu_mul(const TensorView& gate_up, const TensorView& out, bool tanh_approximation,
              Stream stream = {});
void gelu(const TensorView& x, const TensorView& out, bool tanh_approximation, Stream stream = {});
void scale(const TensorView& x,    // [num_tokens, size]
           const TensorView& out,  // as x, which it may be
           double factor,
           double soft_cap,  // out = soft_cap tanh(factor x / soft_cap); 0: out = factor x
           Stream stream = {});
void scale_by_position(const TensorView& x,          // [num_tokens, size]
                       const TensorView& positions,  // [num_tokens] int64; negative: as 0
                       const TensorView& out,        // as x, which it may be
                       double beta,                  // out = (1 + beta ln(1 + n)) x,
                       int64_t length,               // n = floor(position / length)
                       Stream stream = {});

void sigmoid_mul(const TensorView& x,     // [num_tokens, num_heads, head_dim] float32 or bfloat16
                 const TensorView& gate,  // as x
                 const TensorView& out,   // as x
                 Stream stream = {});

void causal_conv(const TensorView& x,             // [num_tokens, num_channels] float32 or bfloat16
                 const TensorView& weight,        // [width, num_channels] float32, width 2 to 4
                 OptionalTensor bias,             // [num_channels] float32
                 const TensorView& state,         // [num_slots, width - 1, num_channels] float32
                 const TensorView& state_slots,   // [batch_size] int64
                 const TensorView& seq_lens,      // [batch_size] int32
                 const TensorView& cu_seqlens_q,  // [batch_size + 1] int32
                 OptionalTensor gate_in,          // as x
                 OptionalTensor gate_out,         // as x
                 bool silu,
                 const TensorView& out,  // as x
                 Stream stream = {});

void gated_delta(const TensorView& q,      // [num_tokens, num_key_heads, key_dim] as v
                 const TensorView& k,      // as q
                 const TensorView& v,      // [num_tokens, num_value_heads, value_dim] float32, bf16
                 const TensorView& a,      // [num_tokens, num_value_heads] as v
                 const TensorView& b,      // as a
                 const TensorView& decay,  // [num_value_heads] float32, negative
                 const TensorView& dt_bias,  // [num_value_heads] float32
                 const TensorView& state,    // [num_slots, num_value_heads, key_dim, value_dim] f32
                 const TensorView& state_slots, const TensorView& seq_lens,
                 const TensorView& cu_seqlens_q, bool tiled, double scale,
                 OptionalTensor gate,         // as v
                 OptionalTensor norm_weight,  // [value_dim] float32, with a gate
                 double eps,
                 const TensorView& out,  // as v
                 Stream stream = {});

void append_kv(OptionalTensor q,                // [num_tokens, num_qo_heads, head_dim], in and out
               const TensorView& k,             // [num_tokens, num_kv_heads, head_dim]
               const TensorView& v,             // as k
               const TensorView& k_cache,       // [num_pages, num_kv_heads, page_size, head_dim]
               const TensorView& v_cache,       // as k_cache
               const TensorView& slot_mapping,  // [num_tokens] int64; -1: write nothing
               OptionalTensor positions,        // [num_tokens] int32 or int64
               OptionalTensor cos_sin,          // [max_positions, rotary_dim] float32
               bool interleaved, bool hadamard,
               OptionalTensor q_norm_weight,  // [head_dim] float32 or as k
               OptionalTensor k_norm_weight,  // [head_dim]
               double eps,
               OptionalTensor k_scale,  // [num_pages, num_kv_heads, page_size] float32
               OptionalTensor v_scale,  // as k_scale
               Stream stream = {});

/// The options of paged_attention; 0 turns the window and the cap off.
struct AttentionOptions {
  double softmax_scale = 1.0;
  bool causal = true;
  int64_t sliding_window = 0;
  double soft_cap = 0.0;
  bool deterministic = false;  // on CUDA: the same bits in any batch; on the CPU always so
  /// On CUDA: the workspace holds the plan of the last call with it, which had the same shapes,
  /// dtypes, lengths, window and other options but scale and cap: the calls of a model's layers
  /// after the first. It saves a launch.
  bool planned = false;
};

void paged_attention(const TensorView& q,        // [num_tokens, num_qo_heads, head_dim]
                     const TensorView& k_cache,  // [num_pages, num_kv_heads, page_size, head_dim]
                     const TensorView& v_cache,  // as k_cache
                     const TensorView& page_table,    // [batch_size, max_pages_per_seq] int32
                     const TensorView& seq_lens,      // [batch_size] int32
                     const TensorView& cu_seqlens_q,  // [batch_size + 1] int32
                     const AttentionOptions& options,
                     OptionalTensor sinks,         // [num_qo_heads] float32
                     OptionalTensor k_scale,       // [num_pages, num_kv_heads, page_size] float32
                     OptionalTensor v_scale,       // as k_scale
                     OptionalTensor lse,           // [num_tokens, num_qo_heads] float32
                     const TensorView& out,        // as q
                     const TensorView& workspace,  // [paged_attention_workspace_size(...)] uint8
                     Stream stream = {});

/// Shape that determines paged_attention's workspace. The last three matter on CUDA only.
struct AttentionWorkspace {
  int64_t num_qo_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t max_seq_len;  // the page table's columns times page_size
  int64_t batch_size = 0;
  int64_t num_tokens = 0;  // of q
  bool deterministic = false;
};

/// Bytes of that workspace, which do not depend on lengths: calls with other lengths may use it
/// too.
int64_t paged_attention_workspace_size(Device device, const AttentionWorkspace& of);

void merge_states(
    const TensorView& out_partial,  // [num_splits, num_tokens, num_heads, head_dim] f32
    const TensorView& lse_partial,  // [num_splits, num_tokens, num_heads] float32
    const TensorView& out,          // [num_tokens, num_heads, head_dim]
    OptionalTensor lse,             // [num_tokens, num_heads] float32
    Stream stream = {});

/// Operations fused into a linear: the norm before y = norm(x) weight^T + bias, out from y after
/// it.
struct LinearOptions {
  OptionalTensor norm_weight = nullptr;  // [in_features] float32 or as x: RMS norm of x
  double norm_eps = 1e-6;
  bool silu_mul = false;      // y is gate and up, 16 columns in turn: out = silu(gate) * up
  bool accumulate = false;    // out += y
  int activation_bits = 16;   // rounding of x: packed 8, 9 or 16 (CUDA: 16), bfloat16 8 or 16
  double swiglu_limit = 0.0;  // beside silu_mul, if > 0: the clamped one (LinearParams)
};

void linear(const TensorView& x,       // [num_tokens, in_features] float32, bfloat16; CUDA: float16
            const TensorView& weight,  // [out_features, in_features] float32, bfloat16 or float16
            OptionalTensor bias,       // [out_features] float32 or as x
            const LinearOptions& options,
            const TensorView& out,     // [num_tokens, out_features] float32 or as x
            OptionalTensor workspace,  // [>= linear_workspace_size()] uint8; null: CUDA, or no norm
                                       // and not float32 x beside a bfloat16 weight
            Stream stream = {});

/// Packed weights (common/formats/formats.h).
WeightFormat parse_weight_format(const std::string& name);  // its kName, as "q4_0"
std::vector<std::string> weight_formats();                  // all names
int64_t packed_block_size(WeightFormat format);  // weights of a block of a row in the file: 32, 256
int64_t packed_block_bytes(WeightFormat format);  // its bytes
int64_t packed_strip_bytes(WeightFormat format, int64_t in_features);
/// Raises unless a weight of this format may have `in_features` columns; `name` is the argument
/// with the columns.
void check_packed(const char* name, WeightFormat format, int64_t in_features);
void quantize_weight(const TensorView& weight,  // [rows, in_features] float32, bfloat16 or float16
                     WeightFormat format,
                     const TensorView& blocks);  // [rows, row_bytes] uint8, as in the file
void pack_weight(const TensorView& blocks,       // [rows, row_bytes] uint8, as in the file
                 WeightFormat format,
                 const TensorView& out);  // [ceil(rows / 16), strip_bytes] uint8
int64_t linear_workspace_size(int64_t num_tokens, int64_t in_features);
void linear_packed(const TensorView& x, const TensorView& weight, WeightFormat format,
                   OptionalTensor bias, const LinearOptions& options, const TensorView& out,
                   const TensorView& workspace,  // [>= linear_workspace_size()] uint8
                   Stream stream = {});

/// Mixtures of experts, on the CPU. What the outputs mean is written in params.h (RouteParams).
struct Routing {
  const TensorView& experts;  // [num_tokens, top_k] int32
  const TensorView& weights;  // [num_tokens, top_k] float32
  const TensorView& rows;     // [num_tokens, top_k] int32
  const TensorView& x_rows;   // [num_tokens * top_k] int32
  const TensorView& offsets;  // [num_experts + 1] int32
};
void route_tokens(const TensorView& logits,  // [num_tokens, num_experts] float32
                  bool normalized, const Routing& to);
/// A linear with a weight per expert, for rows in the order of their experts; `options` as of
/// linear() and linear_packed(), without accumulate.
void expert_linear(const TensorView& x,         // [num_x_rows, in_features]
                   const TensorView& weight,    // [num_experts * out_features, in_features], or its
                                                // strips, out_features a multiple of 16
                   const WeightFormat* format,  // null: dense
                   OptionalTensor bias,         // [num_experts * out_features] float32 or as x
                   const TensorView& offsets,   // [num_experts + 1] int32: rows of every expert
                   OptionalTensor x_rows,       // [num_rows] int32: rows of x; null: row i
                   const LinearOptions& options,
                   const TensorView& out,         // [num_rows, out_features] float32 or as x
                   const TensorView& workspace);  // [>= linear_workspace_size(num_rows, ...)] uint8
void combine_experts(const TensorView& y,         // [num_rows, size] float32 or as out
                     const TensorView& rows,      // [num_tokens, top_k] int32
                     const TensorView& weights,   // [num_tokens, top_k] float32
                     bool accumulate,
                     const TensorView& out);  // [num_tokens, size] float32 or bfloat16

void embedding(const TensorView& token_ids,  // [num_tokens] int32 or int64
               const TensorView& table,      // [vocab_size, hidden_size] float32, bfloat16, float16
               const TensorView& out,        // [num_tokens, hidden_size] float32 or bfloat16
               bool accumulate,              // out += rows
               Stream stream = {});
void embedding_packed(const TensorView& token_ids, const TensorView& table, WeightFormat format,
                      int64_t vocab_size, const TensorView& out, bool accumulate,
                      Stream stream = {});

/// From logits to tokens. What a null argument means is written in params.h (SampleParams).
struct SampleArguments {
  const TensorView& logits;                     // [batch_size, vocab_size] float32 or bfloat16
  const TensorView& temperature;                // [batch_size] float32, 0: greedy
  OptionalTensor top_k = nullptr;               // [batch_size] int32
  OptionalTensor top_p = nullptr;               // [batch_size] float32
  OptionalTensor min_p = nullptr;               // [batch_size] float32
  OptionalTensor seeds = nullptr;               // [batch_size] int64
  OptionalTensor positions = nullptr;           // [batch_size] int64
  OptionalTensor penalty_ids = nullptr;         // [nnz] int32
  OptionalTensor penalty_counts = nullptr;      // [nnz] int32
  OptionalTensor cu_penalties = nullptr;        // [batch_size + 1] int32
  OptionalTensor repetition_penalty = nullptr;  // [batch_size] float32
  OptionalTensor presence_penalty = nullptr;    // [batch_size] float32
  OptionalTensor frequency_penalty = nullptr;   // [batch_size] float32
  OptionalTensor bias_ids = nullptr;            // [nnz] int32
  OptionalTensor bias_values = nullptr;         // [nnz] float32
  OptionalTensor cu_bias = nullptr;             // [batch_size + 1] int32
  OptionalTensor allowed_mask = nullptr;        // [batch_size, ceil(vocab_size / 32)] int32
  const TensorView& token_ids;                  // [batch_size] int64
  const TensorView& status;                     // [batch_size] int32
  OptionalTensor logprobs = nullptr;            // [batch_size, 2] float32
  OptionalTensor kept = nullptr;                // [batch_size, vocab_size] bool or uint8
  OptionalTensor num_kept = nullptr;            // [batch_size] int32
  OptionalTensor processed_logprobs = nullptr;  // [batch_size, vocab_size] float32
  const TensorView& workspace;                  // sampling_workspace_size() bytes, uint8
};
void sample(const SampleArguments& a, Stream stream = {});

void token_logprobs(const TensorView& logits,        // [batch_size, vocab_size]
                    const TensorView& token_ids,     // [batch_size] int64, -1: none
                    const TensorView& logprob,       // [batch_size] float32
                    const TensorView& rank,          // [batch_size] int32
                    const TensorView& top_ids,       // [batch_size, num_top] int32
                    const TensorView& top_logprobs,  // [batch_size, num_top] float32
                    const TensorView& workspace, Stream stream = {});

/// Bytes of workspace for both: on CPU with the current number of threads, for any batch; on CUDA
/// for batches of up to batch_size rows.
int64_t sampling_workspace_size(int64_t vocab_size, Device device, int64_t batch_size = 1);

/// Number of nodes in the CUDA graph that is being captured on a stream; 0: none is. A launch is a
/// node, so a graph with fewer nodes than ops has lost some to another stream.
int64_t captured_nodes(Device device, Stream stream);

/// The kernel table of the CPU ops: its name, and those that could be chosen. `isa` as in
/// LAMPO_CPU_ISA; throws BackendError if this CPU cannot run it.
std::string cpu_isa();
void set_cpu_isa(const std::string& isa);

/// Operations per second, multiplications and additions, that all CPU threads do with the widest
/// instruction that this kernel table multiplies with; takes about a millisecond. 0: it has none
/// for these products ("f32", "bf16", "int8"). No kernel of the table can be faster.
double peak_rate(const std::string& products);

}  // namespace lampo
