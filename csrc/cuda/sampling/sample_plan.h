// SPDX-License-Identifier: Apache-2.0
// How sample and token_logprobs share rows out and lay out their workspace: pure functions, for the
// launchers, the kernels and the tests.
#pragma once

#include <cstdint>

#include "common/sampling.h"

namespace lampo::cuda {

inline constexpr int kMaxParts = 32;
inline constexpr int kBuckets = 2048;  // of a row's histogram
inline constexpr int kListCapacity = 4096;

/// Threads of a block. Tests that run kernels on the CPU have fewer: each costs them time.
#ifdef LAMPO_SAMPLE_THREADS
inline constexpr int kSampleThreads = LAMPO_SAMPLE_THREADS;
#else
inline constexpr int kSampleThreads = 512;
#endif

/// Bytes of the rows that go through the kernels together: an L2 cache holds them. Tests lower it.
#ifdef LAMPO_SAMPLE_COPY_BYTES
inline constexpr int64_t kCopyBytes = LAMPO_SAMPLE_COPY_BYTES;
#else
inline constexpr int64_t kCopyBytes = 48 << 20;
#endif

LAMPO_HOST_DEVICE constexpr int64_t sample_blocks(int64_t vocab_size) {
  return (vocab_size + kSampleBlock - 1) / kSampleBlock;
}

/// CUDA blocks that share one row: four for every multiprocessor over all rows, each with work for
/// all of its warps. Of 128256 tokens, 501 sample blocks, on 132 multiprocessors:
///   1 row -> 32 parts;  64 rows -> 9 parts;  98 rows -> 6 parts
constexpr int choose_parts(int64_t num_rows, int64_t vocab_size, int num_sms) {
  const int64_t wanted = num_rows > 0 ? (4 * num_sms + num_rows - 1) / num_rows : 1;
  constexpr int64_t kWarps = kSampleThreads / 32;
  const int64_t useful = (sample_blocks(vocab_size) + kWarps - 1) / kWarps;
  const int64_t most = useful < kMaxParts ? useful : kMaxParts;
  return static_cast<int>(wanted < most ? wanted : most);
}

/// Blocks of a cluster that draws from a row in one launch: as many as every GPU with clusters
/// allows. Tests on the CPU have smaller grids.
#ifdef LAMPO_MAX_BLOCKS
inline constexpr int kClusterParts = LAMPO_MAX_BLOCKS < 8 ? LAMPO_MAX_BLOCKS : 8;
#else
inline constexpr int kClusterParts = 8;
#endif
static_assert(kClusterParts <= kMaxParts);

/// Whether all clusters are resident at once, a block on a multiprocessor: up to 16 rows on 132.
constexpr bool takes_clusters(int64_t num_rows, int num_sms) {
  return num_rows * kClusterParts <= num_sms;
}

/// Offsets into a row's scratch memory, in bytes, multiples of 128.
struct SampleLayout {
  int64_t state;          // SampleRowState
  int64_t part_max;       // [kMaxParts] float, of the processed row
  int64_t raw_part_max;   // [kMaxParts] float, of the row as it came
  int64_t raw_part_mass;  // [kMaxParts] uint64, at temperature 1
  int64_t bucket_mass;    // [kBuckets] uint64
  int64_t bucket_count;   // [kBuckets] uint32
  int64_t list_value;     // [kListCapacity] float
  int64_t list_id;        // [kListCapacity] int32
  int64_t block_max;      // [num_blocks] float
  int64_t raw_block_max;  // [num_blocks] float
  int64_t block_mass;     // [num_blocks] uint64, of kept tokens
  int64_t copy;           // [vocab_size] float, the edited row; rows that are not edited have none
  int64_t bytes;          // of a row
};

LAMPO_HOST_DEVICE constexpr SampleLayout sample_layout(int64_t vocab_size, bool copies = true) {
  const int64_t num_blocks = sample_blocks(vocab_size);
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = at;
    at += (bytes + 127) / 128 * 128;
    return begin;
  };
  SampleLayout layout{};
  layout.state = take(128);
  layout.part_max = take(kMaxParts * 4);
  layout.raw_part_max = take(kMaxParts * 4);
  layout.raw_part_mass = take(kMaxParts * 8);
  layout.bucket_mass = take(kBuckets * 8);
  layout.bucket_count = take(kBuckets * 4);
  layout.list_value = take(kListCapacity * 4);
  layout.list_id = take(kListCapacity * 4);
  layout.block_max = take(num_blocks * 4);
  layout.raw_block_max = take(num_blocks * 4);
  layout.block_mass = take(num_blocks * 8);
  layout.copy = take(copies ? vocab_size * 4 : 0);
  layout.bytes = at;
  return layout;
}

/// Rows with copies that go through the kernels together; those of a larger batch go in turns.
constexpr int64_t rows_at_once(int64_t batch_size, int64_t vocab_size) {
  const int64_t most = kCopyBytes / (4 * vocab_size);
  const int64_t rows = most > 1 ? most : 1;
  return batch_size < rows ? batch_size : rows;
}

/// As rows_at_once, without copies, in the same memory. element_bytes: of a logit.
constexpr int64_t raw_rows_at_once(int64_t batch_size, int64_t vocab_size, int element_bytes) {
  const int64_t memory = rows_at_once(batch_size, vocab_size) * sample_layout(vocab_size).bytes;
  const int64_t fit = memory / sample_layout(vocab_size, false).bytes;
  const int64_t cached = kCopyBytes / (element_bytes * vocab_size);
  const int64_t most = cached < fit ? cached : fit;
  const int64_t rows = most > 1 ? most : 1;
  return batch_size < rows ? batch_size : rows;
}

/// With room to align the first row.
constexpr int64_t sample_workspace_bytes(int64_t batch_size, int64_t vocab_size) {
  return 128 + rows_at_once(batch_size, vocab_size) * sample_layout(vocab_size).bytes;
}

}  // namespace lampo::cuda
