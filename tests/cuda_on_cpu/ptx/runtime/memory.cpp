// SPDX-License-Identifier: Apache-2.0
// Accesses of translated kernels to memory, checked.
#include <cstdio>
#include <unordered_map>
#include <vector>

#include "cuda/device/ptx/async_copy.cuh"
#include "ptx/runtime/place.h"
#include "simt/executor.h"

namespace ptx {
namespace {

constexpr u64 kSharedBase = 1024;     // SHARED_BASE of operands.py
constexpr u64 kLowestHost = 1 << 20;  // no memory of the host is below, all shared addresses are

/// Bytes of global memory that the grid has read by ld.global.nc, and those that it has written.
class Record {
 public:
  void clear() { pages_.clear(); }

  void write(u64 address, u32 bytes, int line) { mark(address, bytes, line, kWritten, kConstant); }
  void read_constant(u64 address, u32 bytes, int line) {
    mark(address, bytes, line, kConstant, kWritten);
  }

 private:
  static constexpr u64 kPage = 4096;
  enum Use : u8 { kConstant = 1, kWritten = 2 };

  void mark(u64 address, u32 bytes, int line, Use use, Use other) {
    for (u64 at = address; at < address + bytes; ++at) {
      std::vector<u8>& page = pages_[at / kPage];
      if (page.empty()) page.resize(kPage);
      u8& uses = page[at % kPage];
      if (uses & other) {
        fail(line, use == kWritten ? "writes memory that the grid has read by ld.global.nc"
                                   : "reads by ld.global.nc what the grid has written");
      }
      uses |= use;
    }
  }

  std::unordered_map<u64, std::vector<u8>> pages_;
} record;

std::string hex(u64 address) {
  char text[32];
  snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(address));
  return text;
}

unsigned char* host(u64 address) { return reinterpret_cast<unsigned char*>(address); }

void check_alignment(u64 address, u32 bytes, int line) {
  if (address % bytes == 0) return;
  fail(line, "accesses " + std::to_string(bytes) + " bytes at " + hex(address) +
                 ", which is not aligned to that");
}

bool in_parameters(u64 address, u32 bytes) {
  const u64 begin = address_of(running.parameters);
  return address >= begin && address + bytes <= begin + running.kernel->parameter_bytes;
}

/// An address of the host that is not of shared memory, nor of a parameter.
unsigned char* global(u64 address, u32 bytes, int line) {
  check_alignment(address, bytes, line);
  if (address < kLowestHost) {
    fail(line, "accesses as global " + hex(address) + ", an address of shared memory, or none");
  }
  if (simt::in_shared_of_cluster(host(address), bytes)) {
    fail(line, "accesses as global the generic address of shared memory");
  }
  if (in_parameters(address, bytes)) fail(line, "accesses as global the address of a parameter");
  return host(address);
}

unsigned char* shared(u64 address, u32 bytes, int line) {
  check_alignment(address, bytes, line);
  const u64 size = simt::shared_bytes();
  if (address < kSharedBase || address + bytes > kSharedBase + size) {
    fail(line, "accesses as shared " + hex(address) + ", outside of the block's " +
                   std::to_string(size) + " bytes from " + hex(kSharedBase) + " on");
  }
  return static_cast<unsigned char*>(simt::shared_memory(0)) + (address - kSharedBase);
}

unsigned char* generic(u64 address, u32 bytes, int line) {
  check_alignment(address, bytes, line);
  if (address < kLowestHost) {
    fail(line, "accesses as generic " + hex(address) + ", an address of shared memory, or none");
  }
  return host(address);
}

}  // namespace

void begin_grid() { record.clear(); }

unsigned char* global_read(u64 address, u32 bytes, int line) {
  return global(address, bytes, line);
}
unsigned char* global_write(u64 address, u32 bytes, int line) {
  unsigned char* to = global(address, bytes, line);
  if (running.kernel->reads_constants) record.write(address, bytes, line);
  return to;
}
unsigned char* global_constant(u64 address, u32 bytes, int line) {
  unsigned char* from = global(address, bytes, line);
  record.read_constant(address, bytes, line);
  return from;
}

unsigned char* shared_read(u64 address, u32 bytes, int line) {
  return shared(address, bytes, line);
}
unsigned char* shared_write(u64 address, u32 bytes, int line) {
  return shared(address, bytes, line);
}

unsigned char* generic_read(u64 address, u32 bytes, int line) {
  return generic(address, bytes, line);
}
unsigned char* generic_write(u64 address, u32 bytes, int line) {
  unsigned char* to = generic(address, bytes, line);
  if (in_parameters(address, bytes)) fail(line, "writes to a parameter");
  if (running.kernel->reads_constants && !simt::in_shared_of_cluster(to, bytes)) {
    record.write(address, bytes, line);
  }
  return to;
}

unsigned char* param_read(u64 address, u32 bytes, int line) {
  check_alignment(address, bytes, line);
  if (!in_parameters(address, bytes)) {
    fail(line, "accesses as a parameter " + hex(address) + ", which is none of its addresses");
  }
  return host(address);
}
unsigned char* const_read(u64 address, u32 bytes, int line) { return global(address, bytes, line); }

u64 generic_of_shared(u64 address, int line) {
  if (address < kSharedBase || address > kSharedBase + simt::shared_bytes()) {
    fail(line, "makes a generic address of " + hex(address) + ", which is none of shared memory");
  }
  return address_of(simt::shared_memory(0)) + (address - kSharedBase);
}
u64 shared_of_generic(u64 address, int line) {
  const u64 begin = address_of(simt::shared_memory(0));
  if (address < begin || address > begin + simt::shared_bytes()) {
    fail(line, "makes a shared address of " + hex(address) + ", which is not in shared memory");
  }
  return kSharedBase + (address - begin);
}

void copy_async(unsigned char* to, u64 from, u32 bytes, s32 valid, int line) {
  check_alignment(from, bytes, line);
  if (valid > 0) global(from, 1, line);
  if (valid < 0 || valid > static_cast<s32>(bytes)) fail(line, "copies more bytes than it has");
  const void* source = host(from);
  if (bytes == 16) {
    lampo::cuda::copy_async<16>(to, source, valid);
  } else if (bytes == 8) {
    lampo::cuda::copy_async<8>(to, source, valid);
  } else {
    lampo::cuda::copy_async<4>(to, source, valid);
  }
}
void commit_copies() { lampo::cuda::commit_copies(); }
void wait_copies(int pending) {
  // As the twin's wait_copies<pending>(), for a number that is not a constant here.
  simt::Copy copy;
  while (simt::next_arrival(pending, &copy)) lampo::cuda::arrive(copy);
}

}  // namespace ptx
