// SPDX-License-Identifier: Apache-2.0
// Scratch memory of the sampling kernels: sizes for the op's checks, pointers for the kernels.
//
// Rows are shared out over the threads, each with a slot of its own, as long as there is one for
// every thread; the rows left over are worked on by the whole team, one after the other, in slot 0.
#pragma once

#include "common/sampling.h"

namespace lampo::cpu {

/// The sums of one thread's part of a row.
struct alignas(64) ScanPart {
  uint64_t total;   // mass of all its tokens
  uint64_t above;   // weight above the bracket
  uint64_t inside;  // weight in the bracket
  int64_t listed;   // tokens of the bracket in its list
  bool overflow;    // its list could not hold them all
  float raw_max;
};

/// Values that rank 0 gives to all threads.
struct alignas(64) RowBroadcast {
  uint64_t number;
  float low, high;
  int64_t ties;
  uint64_t mass;
};

struct SampleSlot {
  float* row;            // [vocab] processed logits, where they differ from the input
  float* block_max;      // [num_blocks]
  uint64_t* block_mass;  // [num_blocks] of kept tokens
  float* list;           // [list_capacity] logits in the bracket, by ascending token
  float* list_mass;      // [list_capacity]
  int32_t* block_end;    // [num_blocks] where each block's part of the list ends
  float* scratch;        // [2][list_capacity + kListSlack], also the bracket estimate's
  ScanPart* parts;       // [2][num_threads], used in turn; slot 0 only
  RowBroadcast* broadcast;
  int64_t list_capacity;
};

constexpr int64_t kListCapacity = 16384;
constexpr int64_t kListPerThread = 1024;  // at least, of the list that a team fills together
constexpr int64_t kSlotAlignment = 64;
/// A compressed store may write a whole vector past the last element.
constexpr int64_t kListSlack = 64;

static inline int64_t aligned_size(int64_t bytes) {
  return (bytes + kSlotAlignment - 1) / kSlotAlignment * kSlotAlignment;
}

static inline int64_t num_sample_blocks(int64_t vocab) {
  return (vocab + kSampleBlock - 1) / kSampleBlock;
}

/// Lays a slot out from `base` (null: only counts) and returns its size in bytes.
static inline int64_t lay_out_slot(char* base, int64_t vocab, int num_threads, SampleSlot* slot) {
  const int64_t num_blocks = num_sample_blocks(vocab);
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    char* p = base == nullptr ? nullptr : base + at;
    at += aligned_size(bytes);
    return static_cast<void*>(p);
  };
  const int64_t shared = num_threads * kListPerThread;
  slot->list_capacity = shared > kListCapacity ? shared : kListCapacity;
  slot->row = static_cast<float*>(take(vocab * 4));
  slot->block_max = static_cast<float*>(take(num_blocks * 4));
  slot->block_mass = static_cast<uint64_t*>(take(num_blocks * 8));
  slot->block_end = static_cast<int32_t*>(take(num_blocks * 4));
  slot->list = static_cast<float*>(take((slot->list_capacity + kListSlack) * 4));
  slot->list_mass = static_cast<float*>(take((slot->list_capacity + kListSlack) * 4));
  const int64_t scratch = 4 * (num_blocks + kListSlack) + 2 * (slot->list_capacity + kListSlack);
  slot->scratch = static_cast<float*>(take(scratch * 4));
  slot->parts = static_cast<ScanPart*>(take(2 * num_threads * int64_t{sizeof(ScanPart)}));
  slot->broadcast = static_cast<RowBroadcast*>(take(sizeof(RowBroadcast)));
  return at;
}

static inline int64_t sample_workspace_size(int64_t vocab, int num_threads) {
  SampleSlot slot;
  const int64_t first = lay_out_slot(nullptr, vocab, num_threads, &slot);
  const int64_t other = lay_out_slot(nullptr, vocab, 1, &slot);
  return kSlotAlignment + first + (num_threads - 1) * other;
}

static inline SampleSlot slot_at(void* workspace, int64_t vocab, int num_threads, int rank) {
  SampleSlot slot;
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  char* base = static_cast<char*>(workspace) + (-address & (kSlotAlignment - 1));
  if (rank > 0) {
    base += lay_out_slot(nullptr, vocab, num_threads, &slot);
    base += (rank - 1) * lay_out_slot(nullptr, vocab, 1, &slot);
  }
  lay_out_slot(base, vocab, rank == 0 ? num_threads : 1, &slot);
  return slot;
}

}  // namespace lampo::cpu
