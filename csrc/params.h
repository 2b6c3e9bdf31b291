// SPDX-License-Identifier: Apache-2.0
// What a kernel is given: raw pointers, shapes and strides (in elements), checked by csrc/ops/.
// Both backends take the same structs. Strides are stride_<tensor>_<dimension>; a pointer that may
// be null says so. dtype is the type of the activations.
#pragma once

#include "common/tensor_view.h"
#include "common/weight_format.h"

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

enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh };

/// out = act(gate) * up, or act(x) where `gated` is false.
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
};

/// out = x weight^T + bias
struct LinearParams {
  DType dtype;         // of x: float32 or bfloat16
  DType out_dtype;     // float32 or dtype
  DType weight_dtype;  // float32, bfloat16 or float16
  DType bias_dtype;    // float32 or dtype
  int64_t num_tokens;
  int64_t in_features;
  int64_t out_features;
  const void* x;       // [num_tokens, in_features]
  const void* weight;  // [out_features, in_features]
  const void* bias;    // [out_features]; null: none
  void* out;           // [num_tokens, out_features]
  int64_t stride_x_token;
  int64_t stride_weight_row;
  int64_t stride_out_token;
};

/// As LinearParams, with packed weights (weight_format.h).
struct LinearPackedParams {
  DType dtype;
  DType out_dtype;
  DType bias_dtype;
  WeightFormat format;
  int64_t num_tokens;
  int64_t in_features;
  int64_t out_features;
  const void* x;       // [num_tokens, in_features]
  const void* weight;  // [ceil(out_features / 16)] strips
  const void* bias;    // [out_features]; null: none
  void* out;           // [num_tokens, out_features]
  void* workspace;     // linear_workspace_size() bytes
  int64_t stride_x_token;
  int64_t stride_out_token;
};

/// GGUF blocks to strips.
struct PackWeightParams {
  WeightFormat format;
  int64_t rows;
  int64_t in_features;
  const void* blocks;  // [rows, groups * block_bytes]
  void* out;           // [ceil(rows / 16), strip_bytes]
  int64_t stride_blocks_row;
};

/// out[t] = table[token_ids[t]]; ids are checked by csrc/ops/ where they lie on the CPU.
struct EmbeddingParams {
  DType dtype;  // of out: float32 or bfloat16
  DType id_dtype;
  DType table_dtype;  // of a dense table
  bool packed;        // the table is strips of `format`
  WeightFormat format;
  int64_t num_tokens;
  int64_t hidden_size;
  const void* token_ids;  // [num_tokens] int32 or int64
  const void* table;      // [vocab_size, hidden_size], or strips
  void* out;              // [num_tokens, hidden_size]
  int64_t stride_table_row;
  int64_t stride_out_token;

  /// Entries (id, value) of all rows one after another; row b's are [cu[b], cu[b + 1]).
  struct RaggedIds {
    const int32_t* ids;  // [nnz]; null: no entries
    const int32_t* cu;   // [batch_size + 1]
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
    void* workspace;              // sample_workspace_size() bytes
    int64_t stride_logits_row;
    int64_t stride_mask_row;
    int64_t stride_kept_row;
  };

  struct TokenLogprobsParams {
    DType dtype;  // of logits
    int64_t batch_size;
    int64_t vocab_size;
    int64_t num_top;
    const void* logits;        // [batch_size, vocab_size]
    const int64_t* token_ids;  // [batch_size], -1: none
    float* logprob;            // [batch_size], NaN where token_ids is -1
    int32_t* rank;             // [batch_size], from 1; 0 where token_ids is -1
    int32_t* top_ids;          // [batch_size, num_top]
    float* top_logprobs;       // [batch_size, num_top], descending
    void* workspace;           // sample_workspace_size() bytes
    int64_t stride_logits_row;
  };

}  // namespace lampo
