// SPDX-License-Identifier: Apache-2.0
// One row of sample (sample.cu): its filters, the buckets in which they cut, and by one CUDA block
// the exact cut and the draw.
#pragma once

#include "cuda/elementwise/row_passes.cuh"
#include "params.h"

namespace lampo::cuda {
namespace {

struct RowFilters {
  float temperature;  // 0: greedy
  int64_t top_k;      // vocab_size: off
  float top_p;
  float min_mass;

  __device__ bool cuts(int64_t vocab_size) const { return top_k < vocab_size || top_p < 1.0f; }
};

__device__ inline RowFilters filters_of(const SampleParams& p, int64_t b) {
  const float temperature = p.temperature[b];
  const int64_t k = p.top_k != nullptr ? p.top_k[b] : 0;
  const float top_p = p.top_p != nullptr ? p.top_p[b] : 1.0f;
  const float min_p = p.min_p != nullptr ? fminf(p.min_p[b], 1.0f) : 0.0f;
  return {temperature > 0.0f ? temperature : 0.0f, k > 0 && k < p.vocab_size ? k : p.vocab_size,
          top_p > 0.0f ? top_p : 0.0f, min_p > 0.0f ? min_p * kMassOne : 0.0f};
}

/// A row after step (1) and how its masses are computed; -inf for `max`: no candidate.
template <class E>
struct ProcessedRow {
  LogitRow<E> logits;
  float max;
  MassScale mass;
};

template <class E>
__device__ inline ProcessedRow<E> processed_row(const SampleWork& work, const Rows<E>& rows,
                                                int64_t b, const RowFilters& f) {
  const float row_max = work.max_of(work.scratch(b).part_max);
  const bool infinite = row_max == __builtin_huge_valf();
  const float top = infinite ? 0.0f : row_max;
  return {rows.row(b, work.vocab_size, infinite),
          top,
          {top, f.temperature > 0.0f ? exponent_scale(f.temperature) : 0.0f}};
}

/// As the row's maximum, where the row is infinite.
__device__ inline float flattened(float block_max, bool infinite) {
  if (!infinite) return block_max;
  return block_max == __builtin_huge_valf() ? 0.0f : minus_infinity();
}

/// Which buckets hold what a row's filters must look at one by one.
struct Cuts {
  int k_bucket = kBuckets, p_first = kBuckets, p_last = -1;  // as in SampleRowState: no cut
  Weight k_missing = 0, mass_above_k = 0, mass_above_p = 0;

  /// Tokens of the buckets before this one are kept.
  __device__ int first() const { return p_first < k_bucket ? p_first : k_bucket; }
  /// Tokens of the buckets after this one are not, nor need they be looked at.
  __device__ int last() const {
    return k_bucket < kBuckets ? k_bucket : p_first < kBuckets ? p_last : kBuckets - 1;
  }
};

/// The same among places (MassScale): tokens before `first` are kept.
struct CutPlaces {
  float first, k_begin, k_end, p_begin, p_end;

  __device__ explicit CutPlaces(const Cuts& cuts)
      : first(static_cast<float>(cuts.first())),
        k_begin(static_cast<float>(cuts.k_bucket)),
        k_end(k_begin + 1.0f),
        p_begin(static_cast<float>(cuts.p_first)),
        p_end(static_cast<float>(cuts.p_last + 1)) {}

  /// Whether a token must be looked at. Without a branch.
  __device__ bool listed(float place) const {
    return ((place >= k_begin) & (place < k_end)) | ((place >= p_begin) & (place < p_end));
  }
};

/// Mass in the buckets before `end`.
__device__ inline Weight mass_before(const RowScratch& scratch, int end, SelectStorage& storage) {
  Weight sum = 0;
  for (int bin = static_cast<int>(threadIdx.x); bin < end; bin += kSampleThreads) {
    sum += scratch.bucket_mass[bin];
  }
  return block_fold(sum, Sum{}, storage.sums);
}

/// Top-p is a share of the mass that top-k keeps, which depends on the tokens kept of top-k's
/// bucket: top-p's cut lies between those of the least and of the greatest such mass.
__device__ inline Cuts find_cuts(const RowFilters& f, int64_t vocab_size, const RowScratch& scratch,
                                 SelectStorage& storage) {
  Cuts cuts;
  if (f.top_k < vocab_size) {
    const auto k = static_cast<Weight>(f.top_k);
    const FoundBin found =
        find_bin([&](int bin) { return Weight{scratch.bucket_count[bin]}; }, k, storage);
    cuts.k_bucket = found.bin;
    cuts.k_missing = k - found.before;
  }
  cuts.mass_above_k = mass_before(scratch, cuts.k_bucket, storage);
  if (f.top_p >= 1.0f) return cuts;
  const Weight least = cuts.mass_above_k;
  const Weight most =
      least + (cuts.k_bucket < kBuckets ? scratch.bucket_mass[cuts.k_bucket] : Weight{0});
  const auto mass_of = [&](int bin) { return scratch.bucket_mass[bin]; };
  const Weight low = top_p_target(f.top_p, least);
  const FoundBin found = find_bin(mass_of, low > 0 ? low : 1, storage);
  cuts.p_first = found.bin;
  cuts.mass_above_p = found.before;
  cuts.p_last = find_bin(mass_of, top_p_target(f.top_p, most), storage).bin;
  return cuts;
}

/// Steps (3) to (6) of one row, by a CUDA block.
template <class E>
struct RowDraw {
  const SampleWork& work;
  const RowScratch& scratch;
  const ProcessedRow<E>& row;
  const RowFilters& f;
  Cuts cuts;
  SelectStorage& storage;

  /// Calls fn(l, token) for the tokens of the cuts' buckets, from `first` to `last`.
  template <class Fn>
  __device__ void for_listed(int first, int last, Fn&& fn) const {
    const unsigned size = scratch.state->list_size;
    if (size <= kListCapacity) {
      for (unsigned i = threadIdx.x; i < size; i += kSampleThreads) {
        const float l = scratch.list_value[i];
        const int bucket = row.mass.bucket(l, kBuckets);
        if (bucket >= first && bucket <= last) fn(l, scratch.list_id[i]);
      }
      return;
    }
    RowPart{0, 0, 0, work.num_blocks()}.for_blocks([&](int64_t block) {
      const float largest = flattened(scratch.block_max[block], row.logits.infinite);
      if (largest == minus_infinity() || row.mass.bucket(largest, kBuckets) > last) return;
      const LaneTokens tokens = row.logits.load_block(block);
#pragma unroll
      for (int j = 0; j < kTokensPerLane; ++j) {
        const float l = tokens.l[j];
        if (l == minus_infinity()) continue;
        const int bucket = row.mass.bucket(l, kBuckets);
        if (bucket >= first && bucket <= last) fn(l, static_cast<int32_t>(tokens.token(j)));
      }
    });
  }

  /// Tokens above `value` are in, and of those equal to it the first `ties`, by token.
  struct Cut {
    float value;
    Weight ties, of;
  };

  __device__ Cut cut_by_count() const {
    const Selected found = radix_select(
        [&](auto&& add) {
          for_listed(cuts.k_bucket, cuts.k_bucket,
                     [&](float l, int32_t) { add(descending_key(l), Weight{1}); });
        },
        32, cuts.k_missing, storage);
    return {value_of_key(found.key), found.missing, found.weight};
  }

  __device__ Cut cut_by_mass(Weight target) const {
    const Selected found = radix_select(
        [&](auto&& add) {
          for_listed(cuts.p_first, cuts.p_last,
                     [&](float l, int32_t) { add(descending_key(l), round_to_u64(row.mass(l))); });
        },
        32, target - cuts.mass_above_p, storage);
    const float value = value_of_key(found.key);
    const Weight one = round_to_u64(row.mass(value));
    if (one == 0) return {value, 1, 1};  // not on valid arguments
    return {value, (found.missing + one - 1) / one, found.weight / one};
  }

  __device__ int64_t last_tie(const Cut& cut) const {
    if (cut.ties >= cut.of) return work.vocab_size;
    const int bucket = row.mass.bucket(cut.value, kBuckets);
    const Selected found = radix_select(
        [&](auto&& add) {
          for_listed(bucket, bucket, [&](float l, int32_t token) {
            if (l == cut.value) add(static_cast<uint32_t>(token), Weight{1});
          });
        },
        23, cut.ties, storage);
    return static_cast<int64_t>(found.key);
  }

  /// Writes what is kept to the row's state and adds what is of the list to block_mass.
  __device__ void keep() const {
    SampleRowState kept = {};
    kept.kept_value = minus_infinity();
    kept.kept_last = -1;
    kept.kept_mass = f.min_mass;
    if (cuts.first() < kBuckets) {
      Cut cut = {};
      Weight mass = cuts.mass_above_k;
      if (cuts.k_bucket < kBuckets) {
        cut = cut_by_count();
        if (f.top_p < 1.0f) {
          Weight above = 0;
          for_listed(cuts.k_bucket, cuts.k_bucket, [&](float l, int32_t) {
            if (l > cut.value) above += round_to_u64(row.mass(l));
          });
          mass +=
              block_fold(above, Sum{}, storage.sums) + cut.ties * round_to_u64(row.mass(cut.value));
        }
      }
      if (f.top_p < 1.0f) cut = cut_by_mass(top_p_target(f.top_p, mass));
      kept.kept_value = cut.value;
      kept.kept_last = last_tie(cut);
      for_listed(cuts.first(), cuts.last(), [&](float l, int32_t token) {
        const float mass = row.mass(l);
        if (!is_kept(kept, l, mass, token)) return;
        if (const Weight weight = round_to_u64(mass); weight != 0) {
          atomicAdd(&scratch.block_mass[token / kSampleBlock], weight);
        }
      });
    }
    sync_block();
    if (threadIdx.x == 0) {
      scratch.state->kept_value = kept.kept_value;
      scratch.state->kept_last = kept.kept_last;
      scratch.state->kept_mass = kept.kept_mass;
    }
    sync_block();
  }

  __device__ static bool is_kept(const SampleRowState& kept, float l, float mass, int64_t token) {
    return (l > kept.kept_value || (l == kept.kept_value && token <= kept.kept_last)) &&
           mass >= kept.kept_mass;
  }

  /// One stage of the draw: the candidate with the best score, of several the first, among `count`
  /// candidates from `first`, a multiple of 4, on. -1: all have mass 0.
  template <class MassOf>
  __device__ int64_t draw_candidate(int64_t seed, int64_t position, DrawStage stage, int64_t first,
                                    int64_t count, MassOf&& mass_of) const {
    Weight best =
        0;  // the score's bits, and below them a number that is larger for the first candidate
    for (int64_t quad = threadIdx.x; 4 * quad < count; quad += kSampleThreads) {
      const PhiloxCounter noise =
          draw_noise(seed, position, stage, static_cast<uint32_t>(first / 4 + quad));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t candidate = first + 4 * quad + i;
        if (candidate >= first + count) continue;
        const float score = draw_score(mass_of(candidate), noise.word[i]);
        if (!(score > 0.0f)) continue;
        const Weight entry =
            Weight{bits_from_float(score)} << 32 | (0xffffffffu - static_cast<uint32_t>(candidate));
        best = max(best, entry);
      }
    }
    best = block_fold(best, [](Weight a, Weight b) { return max(a, b); }, storage.sums);
    return best == 0 ? -1 : int64_t{0xffffffffu - static_cast<uint32_t>(best)};
  }

  struct Drawn {
    int64_t token;  // -1: none
    float logprob;
  };

  __device__ Drawn draw(int64_t seed, int64_t position) const {
    keep();
    const SampleRowState kept = *scratch.state;
    Weight total = 0;
    for (int64_t block = threadIdx.x; block < work.num_blocks(); block += kSampleThreads) {
      total += scratch.block_mass[block];
    }
    total = block_fold(total, Sum{}, storage.sums);
    const int64_t block = draw_candidate(
        seed, position, DrawStage::kBlocks, 0, work.num_blocks(), [&](int64_t candidate) {
          return static_cast<float>(static_cast<int64_t>(scratch.block_mass[candidate]));
        });
    if (block < 0) return {-1, 0.0f};
    const int64_t begin = block * kSampleBlock;
    const auto mass_of = [&](int64_t token) {
      const float l = row.logits.at(token);
      const float mass = row.mass(l);
      return is_kept(kept, l, mass, token) ? mass : 0.0f;
    };
    const int64_t token = draw_candidate(seed, position, DrawStage::kTokens, begin,
                                         min(work.vocab_size - begin, kSampleBlock), mass_of);
    if (token < 0) return {-1, 0.0f};
    const double log_mass = log(static_cast<double>(total) / kMassOne);
    if (threadIdx.x == 0) scratch.state->log_mass = log_mass;
    return {token, processed_logprob(row.logits.at(token), row.max, f.temperature, log_mass)};
  }

  /// The first of the largest.
  __device__ Drawn take_largest() const {
    const auto first = [&](int64_t number) {
      return static_cast<int64_t>(block_fold(
          static_cast<Weight>(number), [](Weight a, Weight b) { return min(a, b); }, storage.sums));
    };
    int64_t block = work.num_blocks() - 1;
    for (int64_t i = threadIdx.x; i < work.num_blocks(); i += kSampleThreads) {
      if (flattened(scratch.block_max[i], row.logits.infinite) == row.max) block = min(block, i);
    }
    block = first(block);
    const int64_t begin = block * kSampleBlock;
    const int64_t end = min(begin + kSampleBlock, work.vocab_size);
    int64_t token = end - 1;
    for (int64_t i = begin + threadIdx.x; i < end; i += kSampleThreads) {
      if (row.logits.at(i) == row.max) token = min(token, i);
    }
    token = first(token);
    if (threadIdx.x == 0) {
      scratch.state->kept_value = row.max;
      scratch.state->kept_last = token;
      scratch.state->kept_mass = 0.0f;
      scratch.state->log_mass = 0.0;
    }
    return {token, 0.0f};
  }
};

}  // namespace
}  // namespace lampo::cuda
