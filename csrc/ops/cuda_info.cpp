// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "build_info.h"
#include "cuda/runtime/device_info.h"

namespace lampo {
namespace {

struct Architecture {
  int number;   // 10 * major + minor
  char suffix;  // 'a': that GPU alone, 'f': its family, 0: it and later ones
  bool machine_code;
  bool ptx;
};

Architecture parse(const std::string& text) {
  char* end = nullptr;
  const int number = static_cast<int>(std::strtol(text.c_str(), &end, 10));
  const char suffix = *end == 'a' || *end == 'f' ? *end : '\0';
  const std::string kind = end + (suffix != '\0' ? 1 : 0);
  return {number, suffix, kind != "-virtual", kind != "-real"};
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < list.size();) {
    size_t end = list.find(';', begin);
    if (end == std::string::npos) end = list.size();
    parts.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

}  // namespace

std::vector<std::string> compiled_architectures() { return split(LAMPO_CUDA_ARCHITECTURES); }

std::string cuda_version_string(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string kernel_image_for(const std::vector<std::string>& architectures, int major, int minor) {
  const int capability = major * 10 + minor;
  std::string best;
  int best_rank = -1;
  for (const std::string& text : architectures) {
    const Architecture a = parse(text);
    const bool same_major = a.number / 10 == major && a.number <= capability;
    const bool code_fits = a.suffix == 'a' ? a.number == capability : same_major;
    const bool ptx_fits = a.suffix == '\0' ? a.number <= capability : code_fits;
    const std::string suffix(a.suffix == '\0' ? 0 : 1, a.suffix);
    // Machine code precedes PTX, then the newest image, then the most specific.
    const int rank = a.number * 2 + (a.suffix != '\0' ? 1 : 0);
    if (a.machine_code && code_fits && rank + 100'000 > best_rank) {
      best_rank = rank + 100'000;
      best = "sm_" + std::to_string(a.number) + suffix;
    } else if (a.ptx && ptx_fits && rank > best_rank) {
      best_rank = rank;
      best = "compute_" + std::to_string(a.number) + suffix;
    }
  }
  return best;
}

CudaInfo cuda_info(bool measure_free) {
  CudaInfo info;
  info.compiled = LAMPO_WITH_CUDA;
  info.decision = LAMPO_CUDA_WHY;
  info.architectures = compiled_architectures();
#if LAMPO_WITH_CUDA
  cuda::query_devices(info, measure_free);
#else
  (void)measure_free;
  info.why = "this build has no CUDA backend (" + info.decision + ")";
#endif
  return info;
}

}  // namespace lampo
