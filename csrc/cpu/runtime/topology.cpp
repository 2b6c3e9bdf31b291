// SPDX-License-Identifier: Apache-2.0
#include "cpu/runtime/topology.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <thread>

namespace lampo::cpu {
namespace {

/// cgroup v2 "quota period" (or "max period"), in whole CPUs rounded up; 0 without a limit.
int cgroup_cpu_limit() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0;
  double period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return 0;
  return std::max(1, static_cast<int>(std::ceil(quota / period)));
}

int physical_cores() {
#if defined(__linux__)
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof(mask), &mask) != 0) return 0;
  std::set<std::string> cores;  // CPUs with the same sibling list share a core
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                       "/topology/thread_siblings_list");
    std::string siblings;
    cores.insert(std::getline(file, siblings) ? siblings : "cpu" + std::to_string(cpu));
  }
  return static_cast<int>(cores.size());
#else
  return static_cast<int>(std::thread::hardware_concurrency());
#endif
}

bool cpu_can_run(const std::string& isa) {
  if (isa == "baseline") return true;
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  if (isa == "avx2") return avx2;
  if (isa == "avx512") {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bf16");
  }
#endif
  return false;
}

}  // namespace

int usable_cores() {
  int cores = std::max(1, physical_cores());
  const int limit = cgroup_cpu_limit();
  if (limit > 0) cores = std::min(cores, limit);
  return cores;
}

std::vector<std::string> compiled_isas() {
  return {
      "baseline",
#if defined(LAMPO_HAVE_ISA_AVX2)
      "avx2",
#endif
#if defined(LAMPO_HAVE_ISA_AVX512)
      "avx512",
#endif
  };
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names = compiled_isas();
  std::erase_if(names, [](const std::string& isa) { return !cpu_can_run(isa); });
  return names;
}

}  // namespace lampo::cpu
