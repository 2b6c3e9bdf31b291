// SPDX-License-Identifier: Apache-2.0
#include "ptx/runtime/launch.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "ptx/runtime/place.h"
#include "simt/executor.h"

namespace ptx {

Running running;

namespace {

struct Translated {
  std::string object;
  std::string file;
  int first_line = 0;
  const Kernel* kernel = nullptr;  // loaded when first launched
};

std::map<std::string, Translated> translated;
bool all_translated = false;

std::string demangled(const char* symbol) {
  int status = 0;
  char* text = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
  const std::string result = status == 0 ? text : symbol;
  free(text);
  return result;
}

struct Symbol {
  std::string name;
  std::string file;  // that was compiled; local symbols follow the symbol of their file
};

/// The functions of this program by address, local ones too, from its symbol table.
std::map<const void*, Symbol> read_symbols() {
  std::ifstream stream("/proc/self/exe", std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes.data() + header->e_shoff);
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&run_from_ptx), &info) == 0) return {};
  // A program that may lie anywhere counts from where it lies.
  const auto* base = static_cast<const char*>(header->e_type == ET_DYN ? info.dli_fbase : nullptr);
  std::map<const void*, Symbol> functions;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(bytes.data() + sections[i].sh_offset);
    const char* texts = bytes.data() + sections[sections[i].sh_link].sh_offset;
    std::string file;
    for (size_t k = 0; k < sections[i].sh_size / sizeof(Elf64_Sym); ++k) {
      const char* name = texts + symbols[k].st_name;
      const unsigned type = ELF64_ST_TYPE(symbols[k].st_info);
      if (type == STT_FILE) file = name;
      if (type == STT_FUNC) functions[base + symbols[k].st_value] = {name, file};
    }
  }
  return functions;
}

/// The demangled name; one of an anonymous namespace comes after its file, as in the list.
std::string name_of(const void* kernel) {
  static const std::map<const void*, Symbol> functions = read_symbols();
  const auto found = functions.find(kernel);
  if (found == functions.end()) return "a kernel without a name";
  const std::string name = demangled(found->second.name.c_str());
  const bool local = name.find("(anonymous namespace)") != std::string::npos;
  return local ? found->second.file + ": " + name : name;
}

const Kernel* load(const std::string& object) {
  void* library = dlopen(object.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* kernel = library == nullptr ? nullptr : dlsym(library, "ptx_kernel");
  if (kernel == nullptr) throw std::runtime_error(dlerror());
  return static_cast<const Kernel*>(kernel);
}

void check_block(const std::string& name, const Kernel& kernel, dim3 block) {
  const Dimensions& required = kernel.required_block;
  const u32 threads = block.x * block.y * block.z;
  if (kernel.max_threads != 0 && threads > kernel.max_threads) {
    throw simt::Error(name + ": launched with blocks of " + std::to_string(threads) +
                      " threads, compiled for " + std::to_string(kernel.max_threads) +
                      " (.maxntid)");
  }
  if (required.x != 0 &&
      (block.x != required.x || block.y != required.y || block.z != required.z)) {
    throw simt::Error(name + ": launched with other blocks than it is compiled for (.reqntid)");
  }
}

/// Runs a kernel with its arguments, in the order of its parameters.
void run(const std::string& name, const Translated& at, simt::Grid grid,
         const std::vector<simt::Argument>& arguments) {
  const Kernel& kernel = *at.kernel;
  check_block(name, kernel, grid.block);
  if (arguments.size() != kernel.num_parameters) {
    throw simt::Error(name + ": launched with " + std::to_string(arguments.size()) +
                      " arguments, has " + std::to_string(kernel.num_parameters) + " parameters");
  }
  // Of a larger unit, so that parameters are aligned as they are on hardware.
  std::vector<long double> memory(kernel.parameter_bytes / sizeof(long double) + 1);
  auto* parameters = reinterpret_cast<unsigned char*>(memory.data());
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Parameter& parameter = kernel.parameters[i];
    if (arguments[i].bytes != parameter.bytes) {
      throw simt::Error(name + ": argument " + std::to_string(i) + " has " +
                        std::to_string(arguments[i].bytes) + " bytes, the parameter " +
                        std::to_string(parameter.bytes));
    }
    memcpy(parameters + parameter.offset, arguments[i].value, parameter.bytes);
  }
  grid.shared_bytes += kernel.shared_bytes;
  running = {&kernel, at.file, at.first_line, parameters};
  begin_grid();
  simt::run_grid(
      grid, [](const void* kernel) { static_cast<const Kernel*>(kernel)->run(running.parameters); },
      &kernel);
}

bool run_instead(const void* function, const simt::Grid& grid,
                 const std::vector<simt::Argument>& arguments) {
  const std::string name = name_of(function);
  const auto found = translated.find(name);
  if (found == translated.end()) {
    if (!all_translated) return false;
    throw simt::Error("not translated from PTX: " + name);
  }
  Translated& at = found->second;
  if (at.kernel == nullptr) {
    at.kernel = load(at.object);
    // For tests of what tests launch.
    if (const char* log = getenv("PTX_LAUNCHED")) std::ofstream(log, std::ios::app) << name << "\n";
  }
  run(name, at, grid, arguments);
  return true;
}

}  // namespace

void run_from_ptx(const std::string& list) {
  std::ifstream lines(list);
  std::string line;
  if (!std::getline(lines, line) || (line != "all" && line != "some")) {
    throw std::runtime_error(list + " is not a list of translated kernels");
  }
  all_translated = line == "all";
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string name, number;
    Translated at;
    std::getline(fields, name, '\t');
    std::getline(fields, at.object, '\t');
    std::getline(fields, at.file, '\t');
    std::getline(fields, number, '\t');
    at.first_line = std::stoi(number);
    if (at.file.find("/sm_80/") != std::string::npos) simt::code_arch = 80;
    translated[name] = at;
  }
  simt::run_instead = run_instead;
}

void run_object(const std::string& object, const simt::Grid& grid,
                const std::vector<simt::Argument>& arguments) {
  const Translated at{object, "kernel.ptx", 0, load(object)};
  run("kernel", at, grid, arguments);
}

void fail(int line, const std::string& what) {
  simt::fail(what + "\n  at " + running.file + ":" + std::to_string(running.first_line + line));
}
void unwritten(const char* name, int line) {
  fail(line, std::string("reads ") + name + ", which it has not written");
}
void trap(int line) { fail(line, "traps"); }

}  // namespace ptx
