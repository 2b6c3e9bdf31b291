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

/// A number that is the first word of a file; `missing` if it is not one ("max") or there is none.
double number_in(const std::string& path, double missing) {
  std::ifstream file(path);
  double value = 0;
  return file >> value ? value : missing;
}

/// CPUs that one cgroup may use; 0 without a limit.
double quota_of(const std::string& folder, bool is_v2) {
  double quota = -1, period = 0;
  if (is_v2) {
    std::ifstream file(folder + "/cpu.max");  // "quota period" or "max period", in us
    if (!(file >> quota >> period)) return 0;
  } else {
    quota = number_in(folder + "/cpu.cfs_quota_us", -1);
    period = number_in(folder + "/cpu.cfs_period_us", 0);
  }
  return quota > 0 && period > 0 ? quota / period : 0;
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

double cgroup_cpus(const std::string& root) {
  double limit = 0;
  const auto narrow = [&](const std::string& folder, bool is_v2) {
    const double quota = quota_of(folder, is_v2);
    if (quota > 0 && (limit == 0 || quota < limit)) limit = quota;
  };
  std::ifstream groups(root + "/proc/self/cgroup");  // lines "number:controllers:/path"
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = ",";
    controllers.append(line, first + 1, second - first - 1).append(",");
    const bool is_v2 = controllers == ",,";
    if (!is_v2 && controllers.find(",cpu,") == std::string::npos) continue;
    // Quotas hold for all below them. In a container the path may be the host's, which is not
    // mounted; the folder of the mount is then the container's own group.
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      if (is_v2) {
        narrow(root + "/sys/fs/cgroup" + path, true);
        narrow(root + "/sys/fs/cgroup/unified" + path, true);
      } else {
        narrow(root + "/sys/fs/cgroup/cpu" + path, false);
        narrow(root + "/sys/fs/cgroup/cpu,cpuacct" + path, false);
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
  return limit;
}

int usable_cores() {
  int cores = std::max(1, physical_cores());
  const double limit = cgroup_cpus();
  if (limit > 0) cores = std::min(cores, std::max(1, static_cast<int>(std::ceil(limit))));
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
