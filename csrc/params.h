// SPDX-License-Identifier: Apache-2.0
// Arguments of kernels: raw pointers, shapes and strides (in elements), checked by csrc/ops/. Both
// backends take the same structs. Strides are named stride_<tensor>_<dimension>; comments say which
// pointers may be null. dtype is the type of the activations.
#pragma once

#include "common/attention.h"
#include "common/formats/formats.h"
#include "common/tensor_view.h"

namespace lampo {

struct RmsNormParams {
  DType dtype;         // of x, residual and out
  DType weight_dtype;  // float32 or dtype
  int64_t num_tokens;
  int64_t hidden_size;
  float eps;
  const void* x;       // [num_tokens, hidden_size]
  const void* weight;  // [hidden_size]
  void* residual;      // [num_tokens, hidden_size], in and out; null: none
  void* out;           // [num_tokens, hidden_size]
  int64_t stride_x_token;
  int64_t stride_residual_token;
  int64_t stride_out_token;
};

struct LayerNormParams {
  DType dtype;
  DType weight_dtype;  // of weight and bias
  int64_t num_tokens;
  int64_t hidden_size;
  float eps;
  const void* x;       // [num_tokens, hidden_size]
  const void* weight;  // [hidden_size]
  const void* bias;    // [hidden_size]; null: none
  void* residual;      // [num_tokens, hidden_size], in and out; null: none
  void* out;           // [num_tokens, hidden_size]
  int64_t stride_x_token;
  int64_t stride_residual_token;
  int64_t stride_out_token;
};

enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh, kScale, kSoftCap, kGrow };

/// out = act(gate) * up, or act(x) if not gated.
struct ActivationParams {
  DType dtype;
  Activation activation;
  bool gated;
  int64_t num_tokens;
  int64_t size;   // of a row of out
  const void* x;  // [num_tokens, 2 * size], gate first; not gated: [num_tokens, size]
  void* out;      // [num_tokens, size]
  int64_t stride_x_token;
  int64_t stride_out_token;
  float factor = 1.0f;    // kScale: of x; kSoftCap: of x / soft_cap
  float soft_cap = 0.0f;  // kSoftCap
  // kGrow: rows times 1 + factor ln(1 + floor(position / length))
  const int64_t* positions = nullptr;  // [num_tokens]
  int64_t length = 1;
};

inline const char* op_name(const ActivationParams& p) {
  if (p.activation == Activation::kGrow) return "scale_by_position";
  if (p.activation >= Activation::kScale) return "scale";
  return p.activation == Activation::kSilu ? "silu_mul" : p.gated ? "gelu_mul" : "gelu";
}

/// out = x * sigmoid(gate).
struct SigmoidMulParams {
  DType dtype;
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_dim;
  const void* x;     // [num_tokens, num_heads, head_dim]
  const void* gate;  // as x
  void* out;         // as x; may be x
  int64_t stride_x_token, stride_x_head;
  int64_t stride_gate_token, stride_gate_head;
  int64_t stride_out_token, stride_out_head;
};

/// The sequences of an op with a state each. The state of a sequence counts as zeros if its first
/// new token is at position 0: seq_len is the number of new tokens.
struct StateBatch {
  int64_t batch_size;
  int64_t num_tokens;
  int64_t num_slots;
  const int64_t* state_slots;   // [batch_size], each slot once; of a sequence without tokens: any
  const int32_t* seq_lens;      // [batch_size], the new tokens included
  const int32_t* cu_seqlens_q;  // [batch_size + 1]; tokens past the last are padding, not written
};

/// out_t = gate_out_t * silu(bias + sum_j weight[j] input_{t - width + 1 + j}),
/// input = gate_in * x.
struct CausalConvParams {
  DType dtype;  // of x, gates and out
  bool silu;
  int64_t width;  // 2, 3 or 4
  int64_t num_channels;
  StateBatch batch;
  const void* x;         // [num_tokens, num_channels]
  const void* gate_in;   // as x; null: 1
  const void* gate_out;  // as x; null: 1
  const float* weight;   // [width, num_channels]
  const float* bias;     // [num_channels]; null: none
  float* state;          // [num_slots, width - 1, num_channels], the last inputs, oldest first
  void* out;             // as x; may be x
  int64_t stride_x_token;
  int64_t stride_gate_in_token;
  int64_t stride_gate_out_token;
  int64_t stride_out_token;
  int64_t stride_state_slot;
};

/// Largest key_dim and value_dim of gated_delta.
inline constexpr int kMaxGatedDeltaDim = 256;

/// The gated delta rule, per token and value head: S <- e^g S; S <- S + beta k (v - S^T k)^T;
/// o = S^T q, and the norm of o with a gate.
struct GatedDeltaParams {
  DType dtype;  // of q, k, v, a, b, gate and out
  bool tiled;  // value head h reads key head h % num_key_heads, else h / (value heads per key head)
  int64_t num_key_heads;
  int64_t num_value_heads;  // a multiple of num_key_heads
  int64_t key_dim;
  int64_t value_dim;
  float scale;  // of q, after it is normed
  float eps;    // of the norm of o
  StateBatch batch;
  const void* q;             // [num_tokens, num_key_heads, key_dim]
  const void* k;             // as q
  const void* v;             // [num_tokens, num_value_heads, value_dim]
  const void* a;             // [num_tokens, num_value_heads]
  const void* b;             // as a
  const void* gate;          // as v; null: out = o
  const float* decay;        // [num_value_heads], negative
  const float* dt_bias;      // [num_value_heads]
  const float* norm_weight;  // [value_dim]; null if gate is
  float* state;              // [num_slots, num_value_heads, key_dim, value_dim]
  void* out;                 // as v
  int64_t stride_q_token, stride_q_head;
  int64_t stride_k_token, stride_k_head;
  int64_t stride_v_token, stride_v_head;
  int64_t stride_a_token, stride_b_token;
  int64_t stride_gate_token, stride_gate_head;
  int64_t stride_out_token, stride_out_head;
  int64_t stride_state_slot;
};

/// Rotates (and norms) q in place, and writes the rotated k, and v, to their pages. On the CPU,
/// csrc/ops/ checks slots and positions; on CUDA a slot out of range writes nothing and a position
/// is clamped.
struct AppendKvParams {
  DType dtype;           // of q, k, v; float16 on CUDA only
  DType cache_dtype;     // of k_cache and v_cache
  DType weight_dtype;    // of the norm weights: float32 or dtype
  DType position_dtype;  // int32 or int64
  bool interleaved;      // pairs (2i, 2i + 1), else (i, i + rotary_dim / 2)
  bool hadamard;         // q and k are multiplied by a Hadamard matrix
  int64_t num_tokens;
  int64_t num_qo_heads;  // 0: no q
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t page_size;
  int64_t num_pages;
  int64_t rotary_dim;     // 0: no rotation
  int64_t max_positions;  // rows of cos_sin
  float eps;
  void* q;                      // [num_tokens, num_qo_heads, head_dim], in and out
  const void* k;                // [num_tokens, num_kv_heads, head_dim]
  const void* v;                // [num_tokens, num_kv_heads, head_dim]
  void* k_cache;                // [num_pages, num_kv_heads, page_size, head_dim]
  void* v_cache;                // as k_cache
  const int64_t* slot_mapping;  // [num_tokens], page * page_size + offset; -1: write nothing
  const void* positions;        // [num_tokens]; null if rotary_dim is 0
  const float* cos_sin;         // [max_positions, rotary_dim], cos then sin; null: no rotation
  const void* q_norm_weight;    // [head_dim]; null: no norm
  const void* k_norm_weight;    // [head_dim]; null: no norm
  float* k_scale;               // [num_pages, num_kv_heads, page_size]; null: none (not int8)
  float* v_scale;               // as k_scale
  int64_t stride_q_token, stride_q_head;
  int64_t stride_k_token, stride_k_head;
  int64_t stride_v_token, stride_v_head;
  int64_t stride_k_cache_page, stride_k_cache_head, stride_k_cache_slot;
  int64_t stride_v_cache_page, stride_v_cache_head, stride_v_cache_slot;
  int64_t stride_k_scale_page, stride_k_scale_head, stride_k_scale_slot;
  int64_t stride_v_scale_page, stride_v_scale_head, stride_v_scale_slot;
  int64_t stride_cos_sin_position;
};

/// Token i of the n of a sequence sits at position seq_len - n + i.
struct PagedAttentionParams {
  DType dtype;        // of q and out
  DType cache_dtype;  // of k_cache and v_cache
  AttentionMask mask;
  bool deterministic;  // CUDA: bits that do not depend on the batch; on the CPU they never do
  bool planned;        // CUDA: the workspace has the plan of a call of equal shapes and lengths
  int64_t batch_size;
  int64_t num_tokens;  // of q; those past cu_seqlens_q[batch_size] are padding: 0 and -inf
  int64_t num_qo_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t page_size;          // a power of two
  int64_t max_pages_per_seq;  // columns of page_table
  int64_t num_pages;          // of k_cache and v_cache
  float softmax_scale;
  float soft_cap;               // 0: none
  const void* q;                // [num_tokens, num_qo_heads, head_dim]
  const void* k_cache;          // [num_pages, num_kv_heads, page_size, head_dim]
  const void* v_cache;          // as k_cache
  const float* k_scale;         // [num_pages, num_kv_heads, page_size]; null: 1
  const float* v_scale;         // as k_scale
  const int32_t* page_table;    // [batch_size, max_pages_per_seq]
  const int32_t* seq_lens;      // [batch_size]
  const int32_t* cu_seqlens_q;  // [batch_size + 1]
  const float* sinks;           // [num_qo_heads]; null: none
  void* out;                    // [num_tokens, num_qo_heads, head_dim]
  float* lse;                   // [num_tokens, num_qo_heads]; null: not wanted
  void* workspace;              // 64-byte aligned
  int64_t workspace_bytes;
  int64_t stride_q_token, stride_q_head;
  int64_t stride_out_token, stride_out_head;
  int64_t stride_lse_token;
  int64_t stride_page_table_seq;
  int64_t stride_k_cache_page, stride_k_cache_head, stride_k_cache_slot;
  int64_t stride_v_cache_page, stride_v_cache_head, stride_v_cache_slot;
  int64_t stride_k_scale_page, stride_k_scale_head, stride_k_scale_slot;
  int64_t stride_v_scale_page, stride_v_scale_head, stride_v_scale_slot;
};

/// Shape that determines the size of paged_attention's workspace on CUDA.
struct AttentionShape {
  int64_t batch_size;
  int64_t num_tokens;
  int64_t group_size;
  int64_t head_dim;
  bool deterministic;
};

struct MergeStatesParams {
  DType dtype;  // of out
  int64_t num_splits;
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_dim;
  const float* out_partial;  // [num_splits, num_tokens, num_heads, head_dim]
  const float* lse_partial;  // [num_splits, num_tokens, num_heads]
  void* out;                 // [num_tokens, num_heads, head_dim]
  float* lse;                // [num_tokens, num_heads]; null: not wanted
  int64_t stride_out_partial_split, stride_out_partial_token, stride_out_partial_head;
  int64_t stride_lse_partial_split, stride_lse_partial_token;
  int64_t stride_out_token, stride_out_head;
  int64_t stride_lse_token;
};

/// y = norm(x) weight^T + bias, and out = y, silu(gate) * up, or out + y.
///
/// With experts, rows [expert_offsets[e], expert_offsets[e + 1]) of out are products with weight
/// and bias e. Both are values of the step: kernels read them and clamp those out of range.
struct LinearParams {
  DType dtype;          // of x: float32 or bfloat16; on CUDA also float16
  DType out_dtype;      // float32 or dtype
  DType weight_dtype;   // of a dense weight: float32, bfloat16 or float16
  DType bias_dtype;     // float32 or dtype
  DType norm_dtype;     // float32 or dtype
  WeightFormat format;  // of a packed weight
  int activation_bits;  // rounding of x: packed 8, 9 or 16, a bfloat16 weight 8 or 16
  bool packed;          // weight is strips of `format`
  bool silu_mul;        // rows of weight are gate and up, 16 in turn; out has half as many columns
  bool accumulate;      // out += instead of out =
  float swiglu_limit;   // with silu_mul, if > 0: out = (up + 1) gate sigmoid(1.702 gate), with gate
                        // clamped to <= limit and up to +- limit
  float norm_eps;
  int64_t num_tokens;  // rows of out
  int64_t num_x_rows;  // num_tokens, if x_rows is null
  int64_t in_features;
  int64_t out_features;           // rows of weight, of one expert
  int64_t num_experts;            // 0: one weight for all rows
  const void* x;                  // [num_x_rows, in_features]
  const int32_t* x_rows;          // [num_tokens] rows of x; null: row i of out takes row i of x
  const int32_t* expert_offsets;  // [num_experts + 1]; null: no experts
  const void* norm_weight;        // [in_features], RMS norm of x before the product; null: none
  const void* weight;  // [out_features, in_features], or [ceil(out_features / 16)] strips;
                       // with experts, num_experts of these
  const void* bias;    // [out_features], or [num_experts, out_features]; null: none
  void* out;           // [num_tokens, out_features]
  void* workspace;     // linear_workspace_size() bytes; null: dense without norm, or CUDA
  int64_t stride_x_token;
  int64_t stride_weight_row;     // of a dense weight
  int64_t stride_weight_expert;  // in bytes
  int64_t stride_out_token;
};

/// The top_k experts of every token, and all (token, expert) pairs sorted by expert, then token:
/// their order is that of the rows of expert_linear's out.
struct RouteParams {
  int64_t num_tokens;
  int64_t num_experts;
  int64_t top_k;
  bool normalized;      // weights are the softmax over the chosen experts, else over all
  const float* logits;  // [num_tokens, num_experts]
  int32_t* experts;     // [num_tokens, top_k], by descending logit, then ascending number
  float* weights;       // [num_tokens, top_k]
  int32_t* rows;        // [num_tokens, top_k], places of the pairs among all
  int32_t* x_rows;      // [num_tokens * top_k], tokens of the sorted pairs
  int32_t* offsets;     // [num_experts + 1], the first pair of every expert
  int64_t stride_logits_token;
};

/// out[t] (+)= sum over i of weights[t, i] y[rows[t, i]], in f32, i ascending; += if accumulate.
struct CombineParams {
  DType dtype;    // of out
  DType y_dtype;  // float32 or dtype
  bool accumulate;
  int64_t num_tokens;
  int64_t top_k;
  int64_t size;
  int64_t num_rows;      // of y; others than these are read clamped
  const void* y;         // [num_rows, size]
  const int32_t* rows;   // [num_tokens, top_k]
  const float* weights;  // [num_tokens, top_k]
  void* out;             // [num_tokens, size]
  int64_t stride_y_row;
  int64_t stride_out_token;
};

/// Conversion of a file's blocks to strips.
struct PackWeightParams {
  WeightFormat format;
  int64_t rows;
  int64_t in_features;
  const void* blocks;  // [rows, groups * block_bytes]
  void* out;           // [ceil(rows / 16), strip_bytes]
  int64_t stride_blocks_row;
  int64_t stride_out_strip;
};

/// Conversion of rows of floats to a file's blocks.
struct QuantizeWeightParams {
  WeightFormat format;
  DType weight_dtype;  // float32, bfloat16 or float16
  int64_t rows;
  int64_t in_features;
  const void* weight;  // [rows, in_features]
  void* blocks;        // [rows, in_features / block_size * block_bytes]
  int64_t stride_weight_row;
  int64_t stride_blocks_row;
};

/// out[t] = table[token_ids[t]]. On the CPU, csrc/ops/ checks the ids; on CUDA those outside [0,
/// vocab_size) give zeros.
struct EmbeddingParams {
  DType dtype;  // of out: float32 or bfloat16
  DType id_dtype;
  DType table_dtype;  // of a dense table
  bool packed;        // the table is strips of `format`
  bool accumulate;    // out += rows
  WeightFormat format;
  int64_t num_tokens;
  int64_t hidden_size;
  int64_t vocab_size;
  const void* token_ids;  // [num_tokens] int32 or int64
  const void* table;      // [vocab_size, hidden_size], or strips
  void* out;              // [num_tokens, hidden_size]
  int64_t stride_table_row;
  int64_t stride_out_token;
};

/// Entries (id, value) of all rows one after another; row b's are [cu[b], cu[b + 1]). On CUDA,
/// where csrc/ops/ cannot look at them, entries and ids out of range are skipped.
struct RaggedIds {
  const int32_t* ids;  // [nnz]; null: no entries
  const int32_t* cu;   // [batch_size + 1]
  int64_t size;        // nnz
};

struct SampleParams {
  DType dtype;  // of logits
  int64_t batch_size;
  int64_t vocab_size;
  const void* logits;        // [batch_size, vocab_size]
  const float* temperature;  // [batch_size], 0: greedy
  const int32_t* top_k;      // [batch_size], <= 0 or >= vocab_size: off; null: off
  const float* top_p;        // [batch_size] in (0, 1]; null: 1
  const float* min_p;        // [batch_size] in [0, 1]; null: 0
  const int64_t* seeds;      // [batch_size]; null: all rows are greedy
  const int64_t* positions;  // [batch_size]; null: 0
  RaggedIds penalties;
  const int32_t* penalty_counts;    // [nnz] occurrences in the output; null if no penalties.ids
  const float* repetition_penalty;  // [batch_size]; null: 1
  const float* presence_penalty;    // [batch_size]; null: 0
  const float* frequency_penalty;   // [batch_size]; null: 0
  RaggedIds bias;
  const float* bias_values;     // [nnz]; null if no bias.ids
  const int32_t* allowed_mask;  // [batch_size, ceil(vocab_size / 32)], bit i % 32; null: all
  int64_t* token_ids;           // [batch_size], -1 where status is not 0
  int32_t* status;              // [batch_size]: SampleStatus
  float* logprobs;              // [batch_size, 2]: raw, processed; null: not wanted
  uint8_t* kept;                // [batch_size, vocab_size]: 1 where a token survives; null
  int32_t* num_kept;            // [batch_size]: tokens that survive; null
  float* processed_logprobs;    // [batch_size, vocab_size]: of those, -inf of the others; null
  void* workspace;              // sampling_workspace_size() bytes
  int64_t stride_logits_row;
  int64_t stride_mask_row;
  int64_t stride_kept_row;
  int64_t stride_processed_row;
};

struct TokenLogprobsParams {
  DType dtype;  // of logits
  int64_t batch_size;
  int64_t vocab_size;
  int64_t num_top;
  const void* logits;        // [batch_size, vocab_size]
  const int64_t* token_ids;  // [batch_size], -1: none; on CUDA also what is out of range
  float* logprob;            // [batch_size], NaN where token_ids is -1
  int32_t* rank;             // [batch_size], from 1; 0 where token_ids is -1
  int32_t* top_ids;          // [batch_size, num_top]
  float* top_logprobs;       // [batch_size, num_top], descending
  void* workspace;           // sampling_workspace_size() bytes
  int64_t stride_logits_row;
};

}  // namespace lampo
