// SPDX-License-Identifier: Apache-2.0
// All that a translated kernel includes: kept small, for every kernel is compiled with it. `line` is
// the line of an instruction, counted from the kernel's head.
#pragma once

#include "ptx/runtime/arithmetic.h"

namespace ptx {

struct Dimensions {
  u32 x, y, z;
};

/// A parameter in the memory of all of them.
struct Parameter {
  u32 offset;
  u32 bytes;
};

/// A translated kernel: each has an object file of its own, whose one symbol `ptx_kernel` this is.
struct Kernel {
  void (*run)(unsigned char* parameters);  // one thread
  const Parameter* parameters;
  u32 num_parameters;
  u32 parameter_bytes;
  u32 shared_bytes;           // of variables; what the launch asks for comes after them
  u32 max_threads;            // .maxntid: threads of a block at most; 0: no limit
  Dimensions required_block;  // .reqntid; zeros: any block
  bool reads_constants;       // has ld.global.nc
};

/// The kernel read a register that it had not written.
[[noreturn]] void unwritten(const char* name, int line);
[[noreturn]] void trap(int line);

// Memory (memory.cpp). Each returns the host's pointer to `bytes` at an address of the named space,
// or fails: an address of another space, or one that is not a multiple of `bytes`.
unsigned char* global_read(u64 address, u32 bytes, int line);
unsigned char* global_write(u64 address, u32 bytes, int line);
/// ld.global.nc: memory that nobody writes while the grid runs.
unsigned char* global_constant(u64 address, u32 bytes, int line);
unsigned char* shared_read(u64 address, u32 bytes, int line);
unsigned char* shared_write(u64 address, u32 bytes, int line);
unsigned char* generic_read(u64 address, u32 bytes, int line);
unsigned char* generic_write(u64 address, u32 bytes, int line);
unsigned char* param_read(u64 address, u32 bytes, int line);
unsigned char* const_read(u64 address, u32 bytes, int line);
u64 generic_of_shared(u64 address, int line);
u64 shared_of_generic(u64 address, int line);

void copy_async(unsigned char* to, u64 from, u32 bytes, s32 valid, int line);
void commit_copies();
void wait_copies(int pending);

inline u64 address_of(const void* variable) { return reinterpret_cast<u64>(variable); }
template <class T>
inline T load(const unsigned char* from) {
  return *reinterpret_cast<const T*>(from);
}
template <class T>
inline void store(unsigned char* to, T value) {
  *reinterpret_cast<T*>(to) = value;
}
/// Orders what is around it, which the instruction does not: a missing fence is not found.
template <class T>
inline T atomic_add(unsigned char* at, T value) {
  return __atomic_fetch_add(reinterpret_cast<T*>(at), value, __ATOMIC_ACQ_REL);
}

// Threads (threads.cpp).
Dimensions thread_index();
Dimensions block_index();
Dimensions block_size();
Dimensions grid_size();
u32 lane_index();
u32 cluster_rank();

void block_barrier(int line);
bool block_barrier_and(bool predicate, int line);
bool block_barrier_or(bool predicate, int line);
u32 block_barrier_count(bool predicate, int line);
void wait_for_stream();
void warp_barrier(u32 lanes);
void cluster_barrier(int line);
u64 map_shared(u64 address, u32 rank);

struct Shuffled {
  u32 value;
  bool valid;  // the source lane is in range; else the value is the lane's own
};
Shuffled shuffle_up(u32 value, u32 by, u32 range, u32 lanes);
Shuffled shuffle_down(u32 value, u32 by, u32 range, u32 lanes);
Shuffled shuffle_bfly(u32 value, u32 by, u32 range, u32 lanes);
Shuffled shuffle_idx(u32 value, u32 lane, u32 range, u32 lanes);
bool vote_any(bool predicate, u32 lanes);
bool vote_all(bool predicate, u32 lanes);
bool vote_uni(bool predicate, u32 lanes);
u32 vote_ballot(bool predicate, u32 lanes);
template <class T>
T reduce_add(T value, u32 lanes);
template <class T>
T reduce_min(T value, u32 lanes);
template <class T>
T reduce_max(T value, u32 lanes);

template <bool kTransposed>
void load_matrices(u32 (&to)[4], const unsigned char* row, int line);
void multiply_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4],
                   int line);
void multiply_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4],
                  int line);
void multiply_s8(s32 (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const s32 (&c)[4], int line);

}  // namespace ptx
