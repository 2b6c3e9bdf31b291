// SPDX-License-Identifier: Apache-2.0
// Instructions of translated kernels that threads execute together. One that is `.aligned` must be
// the same for all lanes of a warp, in the same place: the executor compares the lines.
#include "cuda/device/ptx/matrix.cuh"
#include "cuda_runtime.h"
#include "ptx/runtime/place.h"
#include "simt/executor.h"

namespace ptx {
namespace {

Dimensions dimensions(dim3 size) { return {size.x, size.y, size.z}; }

/// Lanes [first, last] that a lane may read, from the third operand of shfl.sync.
struct Range {
  u32 first;
  u32 last;
};
Range range_of(u32 operand) {
  const u32 segment = operand >> 8 & 31, clamp = operand & 31;
  const u32 first = simt::lane_index() & segment;
  return {first, first | (clamp & ~segment)};
}

Shuffled shuffled(const char* what, u32 value, u32 source, bool valid, u32 lanes) {
  if (!valid) source = simt::lane_index();
  return {simt::shuffle(what, lanes, value, source), valid};
}

/// mma.sync by its twin.
template <class T, class C>
void multiply(C (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const C (&c)[4], int line) {
  lampo::cuda::FragmentC<C> sum = {{c[0], c[1], c[2], c[3]}};
  simt::aligned(line);
  lampo::cuda::multiply_add<T>(sum, lampo::cuda::FragmentA{{a[0], a[1], a[2], a[3]}},
                               lampo::cuda::FragmentB{{b[0], b[1]}});
  for (int i = 0; i < 4; ++i) d[i] = sum.value[i];
}

}  // namespace

Dimensions thread_index() { return dimensions(simt::thread_index()); }
Dimensions block_index() { return dimensions(simt::block_index()); }
Dimensions block_size() { return dimensions(simt::block_size()); }
Dimensions grid_size() { return dimensions(simt::grid_size()); }
u32 lane_index() { return simt::lane_index(); }
u32 cluster_rank() { return simt::cluster_rank(); }

void block_barrier(int line) {
  simt::aligned(line);
  simt::sync_block("bar.sync", false);
}
bool block_barrier_and(bool predicate, int line) {
  simt::aligned(line);
  return simt::sync_block("bar.red.and", !predicate) == 0;
}
bool block_barrier_or(bool predicate, int line) {
  simt::aligned(line);
  return simt::sync_block("bar.red.or", predicate) != 0;
}
u32 block_barrier_count(bool predicate, int line) {
  simt::aligned(line);
  return simt::sync_block("bar.red.popc", predicate);
}
void wait_for_stream() { simt::wait_for_stream(); }
void warp_barrier(u32 lanes) { simt::sync_warp(lanes); }
void cluster_barrier(int line) {
  simt::aligned(line);
  simt::sync_cluster();
}
u64 map_shared(u64 address, u32 rank) {
  return address_of(simt::map_shared(reinterpret_cast<const void*>(address), rank));
}

Shuffled shuffle_up(u32 value, u32 by, u32 range, u32 lanes) {
  // The limit is the lowest lane here; a lane before it would be a negative number.
  const s32 source = static_cast<s32>(simt::lane_index()) - static_cast<s32>(by & 31);
  const bool valid = source >= static_cast<s32>(range_of(range).last);
  return shuffled("shfl.sync.up", value, static_cast<u32>(source), valid, lanes);
}
Shuffled shuffle_down(u32 value, u32 by, u32 range, u32 lanes) {
  const u32 source = simt::lane_index() + (by & 31);
  return shuffled("shfl.sync.down", value, source, source <= range_of(range).last, lanes);
}
Shuffled shuffle_bfly(u32 value, u32 by, u32 range, u32 lanes) {
  const u32 source = simt::lane_index() ^ (by & 31);
  return shuffled("shfl.sync.bfly", value, source, source <= range_of(range).last, lanes);
}
Shuffled shuffle_idx(u32 value, u32 lane, u32 range, u32 lanes) {
  const u32 segment = range >> 8 & 31;
  const Range limits = range_of(range);
  const u32 source = limits.first | (lane & 31 & ~segment);
  return shuffled("shfl.sync.idx", value, source, source <= limits.last, lanes);
}

u32 vote_ballot(bool predicate, u32 lanes) {
  const u32 own = predicate ? 1u << simt::lane_index() : 0u;
  return simt::reduce("vote.sync.ballot", lanes, own, [](u32 a, u32 b) { return a | b; });
}
bool vote_any(bool predicate, u32 lanes) {
  return simt::reduce("vote.sync.any", lanes, predicate, [](bool a, bool b) { return a || b; });
}
bool vote_all(bool predicate, u32 lanes) {
  return simt::reduce("vote.sync.all", lanes, predicate, [](bool a, bool b) { return a && b; });
}
bool vote_uni(bool predicate, u32 lanes) {
  const u32 own = predicate ? 2 : 1;
  const u32 all = simt::reduce("vote.sync.uni", lanes, own, [](u32 a, u32 b) { return a | b; });
  return all != 3;
}

template <class T>
T reduce_add(T value, u32 lanes) {
  const auto add = [](u32 a, u32 b) { return a + b; };
  return static_cast<T>(simt::reduce("redux.sync.add", lanes, static_cast<u32>(value), add));
}
template <class T>
T reduce_min(T value, u32 lanes) {
  return simt::reduce("redux.sync.min", lanes, value, [](T a, T b) { return b < a ? b : a; });
}
template <class T>
T reduce_max(T value, u32 lanes) {
  return simt::reduce("redux.sync.max", lanes, value, [](T a, T b) { return a < b ? b : a; });
}
template u32 reduce_add(u32, u32);
template s32 reduce_add(s32, u32);
template u32 reduce_min(u32, u32);
template s32 reduce_min(s32, u32);
template u32 reduce_max(u32, u32);
template s32 reduce_max(s32, u32);

template <bool kTransposed>
void load_matrices(u32 (&to)[4], const unsigned char* row, int line) {
  simt::aligned(line);
  lampo::cuda::load_matrices<kTransposed>(to, row);
}
template void load_matrices<false>(u32 (&)[4], const unsigned char*, int);
template void load_matrices<true>(u32 (&)[4], const unsigned char*, int);

void multiply_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4],
                   int line) {
  multiply<lampo::BF16>(d, a, b, c, line);
}
void multiply_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4],
                  int line) {
  multiply<lampo::F16>(d, a, b, c, line);
}
void multiply_s8(s32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const s32 (&c)[4], int line) {
  multiply<int8_t>(d, a, b, c, line);
}

}  // namespace ptx
