// SPDX-License-Identifier: Apache-2.0
// llama.cpp's quantizer for bench_quantize.py, without an importance matrix:
//
//   llama_cpp_quantize IN.gguf OUT.gguf FILE_TYPE THREADS      (the number of general.file_type)
//
// install_peers builds this file.

#include <cstdio>
#include <cstdlib>

#include "llama.h"

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: llama_cpp_quantize IN.gguf OUT.gguf FILE_TYPE THREADS\n");
    return 2;
  }
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = static_cast<llama_ftype>(std::atoi(argv[3]));
  params.nthread = std::atoi(argv[4]);
  params.allow_requantize = true;
  return llama_model_quantize(argv[1], argv[2], &params) == 0 ? 0 : 1;
}
