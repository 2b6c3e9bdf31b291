// SPDX-License-Identifier: Apache-2.0
#include "simt/async_proxy.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/numeric.h"
#include "simt/executor.h"
#include "simt/fiber.h"

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif
#ifdef SIMT_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(void* address, unsigned long size);
extern "C" void __tsan_write_range(void* address, unsigned long size);
extern "C" void AnnotateIgnoreWritesBegin(const char* file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char* file, int line);
#endif

namespace simt {
namespace {

constexpr int kLineBytes = 128;
constexpr int kGroupBytes = 1024;  // eight lines, over which the swizzle repeats

char written_by_tma = 0;  // before every product

/// While it lives, what the thread does is the executor's own: its memory passes between threads.
class Unseen {
 public:
#ifdef SIMT_TSAN
  Unseen() { AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Unseen() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); }
#else
  Unseen() {}
#endif
};

/// While it lives, accesses are those of an asynchronous unit: 0 TMA, 1 + w warpgroup w.
class AsUnit {
 public:
  explicit AsUnit([[maybe_unused]] unsigned unit) {
#ifdef SIMT_TSAN
    static std::map<unsigned, void*> fibers;
    void*& fiber = fibers[unit];
    if (fiber == nullptr) fiber = __tsan_create_fiber(0);
    before_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync);
#endif
  }
  ~AsUnit() {
    happens_before(grid_ends());
#ifdef SIMT_TSAN
    __tsan_switch_to_fiber(before_, __tsan_switch_to_fiber_no_sync);
#endif
  }

 private:
  void* before_ = nullptr;
};

void names_read([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#ifdef SIMT_TSAN
  __tsan_read_range(const_cast<void*>(at), bytes);
#endif
}
void names_write([[maybe_unused]] void* at, [[maybe_unused]] size_t bytes) {
#ifdef SIMT_TSAN
  __tsan_write_range(at, bytes);
#endif
}
bool poisoned([[maybe_unused]] const void* at, [[maybe_unused]] size_t bytes) {
#ifdef SIMT_ASAN
  return __asan_region_is_poisoned(const_cast<void*>(at), bytes) != nullptr;
#else
  return false;
#endif
}

/// Groups of eight lines that copies have not written yet, and that products have not finished
/// reading.
std::multiset<const char*> unwritten, unread;

const char* group_of(const char* at) { return at - reinterpret_cast<uintptr_t>(at) % kGroupBytes; }

/// Where TMA and wgmma keep the 16 bytes at `at` of lines that begin at a multiple of 1024.
const char* swizzled(const char* at) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  return reinterpret_cast<const char*>(address ^ (address / kLineBytes % 8 * 16));
}

/// What a copy does; `issued` is before it.
std::string write_box(char* to, int64_t lines, const Box& box, void* issued) {
  const AsUnit tma(0);
  happens_after(issued);
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(to, lines * kLineBytes);
#endif
  names_write(to, lines * kLineBytes);
  for (int64_t line = 0; line < lines; ++line) {
    int64_t index[4] = {box.at[0]};
    int64_t left = line;
    for (int i = 1; i < 4; ++i) {
      index[i] = box.at[i] + left % box.box[i];
      left /= box.box[i];
    }
    bool inside = true;
    const char* from = static_cast<const char*>(box.data) + index[0] * 2;
    for (int i = 1; i < 4; ++i) {
      inside = inside && index[i] >= 0 && index[i] < box.size[i];
      from += index[i] * box.stride[i];
    }
    const int64_t columns = std::clamp<int64_t>(box.size[0] - index[0], 0, box.box[0]);
    const int64_t valid = inside ? columns * 2 : 0;
    if (valid > 0 && poisoned(from, valid)) return "TMA reads outside of a tensor";
    names_read(from, valid);
    for (int at = 0; at < kLineBytes; at += 2) {
      char* element = to + line * kLineBytes + at;
      element = const_cast<char*>(swizzled(element - at % 16)) + at % 16;
      const char zeros[2] = {};
      const char* source = at < valid ? from + at : zeros;
      element[0] = source[0];
      element[1] = source[1];
    }
  }
  happens_before(&written_by_tma);
  return "";
}

}  // namespace

void happens_before_async(void* object) {
  const AsUnit tma(0);
  happens_before(object);
}

uint32_t shared_offset(const void* address) {
  // The block's memory is at a multiple of 1024, the window of shared memory begins at 1024.
  return static_cast<uint32_t>(static_cast<const char*>(address) - shared_begin()) + kGroupBytes;
}

void copy_box(void* to, const Box& box, const void* mbarrier) {
  const Unseen unseen;
  int64_t lines = 1;
  for (int i = 1; i < 4; ++i) lines *= box.box[i];
  const int64_t bytes = lines * kLineBytes;
  auto* begin = static_cast<char*>(to);
  if (!in_shared(to, static_cast<size_t>(bytes))) fail("copies a box to outside its shared memory");
  if (reinterpret_cast<uintptr_t>(to) % kGroupBytes != 0 || bytes % kGroupBytes != 0) {
    fail("copies a box to, or of, what is no multiple of 1024 bytes");
  }
  for (int64_t i = 0; i < bytes; i += kGroupBytes) {
    if (unread.contains(begin + i)) fail("copies a box over what a product still reads");
    unwritten.insert(begin + i);
  }
  memset(begin, 0xff, bytes);
#ifdef SIMT_ASAN
  __asan_poison_memory_region(begin, bytes);
#endif
  // What the thread knows is before the copy: the barriers that it has waited for.
  auto issued = std::make_shared<char>();
  happens_before(issued.get());
  const auto write = [=]() -> std::string {
    std::string wrong = write_box(begin, lines, box, issued.get());
    for (int64_t i = 0; i < bytes; i += kGroupBytes) unwritten.erase(unwritten.find(begin + i));
    return wrong;
  };
  write_async(write, mbarrier, bytes);
}

namespace {

struct Issued {
  Product product;
  std::vector<const char*> groups;  // of lines that it reads
};

/// Accumulators of a warp, by lane, while products are under way: registers are garbage meanwhile.
struct Sums {
  std::array<float*, 32> registers;
  std::array<std::vector<float>, 32> values;
};

struct WarpProducts {
  bool fenced = false;
  unsigned calls = 0;  // the first lane of each call makes it
  std::array<unsigned, 32> calls_of_lane{};
  std::vector<std::vector<Issued>> groups{1};  // the last is open
  std::map<float*, Sums> sums;                 // by lane 0's registers
  char done = 0;

  bool first_lane() {
    const unsigned call = ++calls_of_lane[lane_index()];
    if (call <= calls) return false;
    calls = call;
    return true;
  }
};

WarpProducts& own() {
  auto& storage = warp_storage();
  if (storage == nullptr) storage = std::make_shared<WarpProducts>();
  return *static_cast<WarpProducts*>(storage.get());
}

struct Descriptor {
  const char* begin;
  int64_t leading, stride;  // in bytes

  explicit Descriptor(uint64_t bits)
      : begin(shared_begin() + ((bits & 0x3fff) << 4) - kGroupBytes),
        leading(static_cast<int64_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<int64_t>(bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) fail("gives wgmma an operand of another swizzle than 128 bytes");
    if ((bits >> 49 & 7) != 0) fail("gives wgmma an operand with a base offset");
  }
  /// 8 elements, 16 bytes, of row or column `i` from k on: lines along K.
  const char* along_k(int i, int k) const {
    return swizzled(begin + i / 8 * stride + i % 8 * kLineBytes + k * 2);
  }
  /// 8 elements of k, from column `i` on: lines along the columns.
  const char* along_columns(int k, int i) const {
    return swizzled(begin + i / 64 * leading + k / 8 * stride + k % 8 * kLineBytes + i % 64 * 2);
  }
};

/// All 16 bytes of the operands in shared memory: fn(operand 0 or 1, row or k, column / 8, bytes).
template <class Fn>
void for_each_chunk(const Product& p, Fn&& fn) {
  const int rows_before = static_cast<int>(warp_index() % 4) * 16;
  if (!p.a_in_registers) {
    const Descriptor a(p.a_descriptor);
    for (int row = 0; row < 16; ++row) {
      for (int half = 0; half < 2; ++half) fn(0, row, half, a.along_k(rows_before + row, 8 * half));
    }
  }
  const Descriptor b(p.b_descriptor);
  if (p.b_transposed) {
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < p.columns / 8; ++i) fn(1, k, i, b.along_columns(k, 8 * i));
    }
  } else {
    for (int column = 0; column < p.columns; ++column) {
      for (int half = 0; half < 2; ++half) fn(1, column, half, b.along_k(column, 8 * half));
    }
  }
}

float number(bool bf16, uint16_t bits) {
  return bf16 ? lampo::to_float(lampo::BF16{bits}) : lampo::to_float(lampo::F16{bits});
}

void compute(const Product& p, Sums& sums) {
  constexpr int kMost = 128;
  static float a[16][16], b[16][kMost], c[16][kMost];
  const auto get = [&](const char* chunk, int i) {
    uint16_t bits;
    memcpy(&bits, chunk + 2 * i, 2);
    return number(p.bf16, bits);
  };
  for_each_chunk(p, [&](int operand, int row, int part, const char* chunk) {
    for (int i = 0; i < 8; ++i) {
      if (operand == 0) {
        a[row][8 * part + i] = get(chunk, i);
      } else if (p.b_transposed) {
        b[row][8 * part + i] = get(chunk, i);
      } else {
        b[8 * part + i][row] = get(chunk, i);
      }
    }
  });
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; p.a_in_registers && i < 8; ++i) {
      a[g + 8 * (i / 2 % 2)][8 * (i / 4) + 2 * t + i % 2] =
          number(p.bf16, static_cast<uint16_t>(p.a[lane][i / 2] >> 16 * (i % 2)));
    }
    for (int i = 0; i < p.columns / 2; ++i) {
      c[g + 8 * (i / 2 % 2)][i / 4 * 8 + 2 * t + i % 2] = p.add ? sums.values[lane][i] : 0.0f;
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < p.columns; ++column) c[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < p.columns / 2; ++i) {
      sums.values[lane][i] = c[g + 8 * (i / 2 % 2)][i / 4 * 8 + 2 * t + i % 2];
    }
  }
}

void run_product(WarpProducts& warp, const Product& p) {
  {
    const AsUnit products(1 + warp_index() / 4);
    happens_after(&written_by_tma);
    happens_after(fenced());
    for_each_chunk(p, [](int operand, int, int, const char* chunk) {
      if (operand == 0 || warp_index() % 4 == 0) names_read(chunk, 16);  // B once for four warps
    });
    happens_before(&warp.done);
  }
  compute(p, warp.sums.at(p.acc[0]));
}

}  // namespace

void fence_products() {
  const Unseen unseen;
  WarpProducts& warp = own();
  if (warp.first_lane()) warp.fenced = true;
}

void issue_product(const Product& p) {
  std::optional<Unseen> unseen{std::in_place};
  WarpProducts& warp = own();
  if (!warp.first_lane()) return;
  if (!warp.fenced) fail("multiplies by wgmma without wgmma.fence");
  std::set<const char*> groups;
  for_each_chunk(p, [&](int, int, int, const char* chunk) {
    if (!in_shared(chunk, 16)) fail("multiplies by wgmma what is outside its shared memory");
    if (!groups.insert(group_of(chunk)).second) return;
    if (unwritten.contains(group_of(chunk)))
      fail("multiplies by wgmma what a copy has yet to write");
    unseen.reset();  // this thread, too, must know that the bytes are there: a sample of them
    names_read(chunk, 16);
    unseen.emplace();
  });
  happens_before(&warp.done);
  unread.insert(groups.begin(), groups.end());
  const auto [found, is_new] = warp.sums.try_emplace(p.acc[0]);
  if (is_new) {
    found->second.registers = p.acc;
    for (int lane = 0; lane < 32; ++lane) {
      found->second.values[lane].assign(p.acc[lane], p.acc[lane] + p.columns / 2);
      std::fill_n(p.acc[lane], p.columns / 2, __builtin_nanf(""));
    }
  }
  warp.groups.back().push_back({p, {groups.begin(), groups.end()}});
  if (!late()) run_product(warp, p);
}

void commit_products() {
  const Unseen unseen;
  WarpProducts& warp = own();
  if (warp.first_lane()) warp.groups.emplace_back();
}

void wait_products(int pending) {
  const Unseen unseen;
  WarpProducts& warp = own();
  if (warp.first_lane()) {
    auto& groups = warp.groups;  // the open one is not waited for
    while (static_cast<int>(groups.size()) - 1 > pending) {
      for (const Issued& issued : groups.front()) {
        if (late()) run_product(warp, issued.product);
        for (const char* group : issued.groups) unread.erase(unread.find(group));
      }
      groups.erase(groups.begin());
    }
    std::set<float*> busy;
    for (const auto& group : groups) {
      for (const Issued& issued : group) busy.insert(issued.product.acc[0]);
    }
    std::erase_if(warp.sums, [&](const auto& item) {
      if (busy.contains(item.first)) return false;
      const Sums& sums = item.second;
      for (int lane = 0; lane < 32; ++lane) {
        std::copy(sums.values[lane].begin(), sums.values[lane].end(), sums.registers[lane]);
      }
      return true;
    });
    warp.fenced = false;
  }
  happens_after(&warp.done);
}

void check_settled(const float* acc) {
  const Unseen unseen;
  for (const auto& [first, sums] : own().sums) {
    if (sums.registers[lane_index()] == acc) fail("uses accumulators of a product under way");
  }
}

bool products_under_way() { return warp_storage() != nullptr && !own().sums.empty(); }

void forget_async() {
  unwritten.clear();
  unread.clear();
}

}  // namespace simt
