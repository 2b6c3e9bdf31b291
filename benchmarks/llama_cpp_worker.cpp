// SPDX-License-Identifier: Apache-2.0
// The llama.cpp side of bench_decode.py: one long-lived process that answers JSON lines.
//
//   llama_cpp_worker MODEL.gguf THREADS CONTEXT_TOKENS
//   -> {"ready": true, "engine": "llama.cpp", ...}
//   <- {"prompt": [1, 2, 3], "max_tokens": 64}
//   -> {"ttft_s": 0.1, "total_s": 0.5, "token_ids": [...]}
//
// Greedy, end-of-text ignored, batch 1, library defaults otherwise (f16 cache, flash attention
// chosen by the library, weights repacked where it knows how). The clock starts when the prompt has
// been parsed; the first token's time ends when its id is known. install_peers builds this file.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"
#include "nlohmann/json.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Engine {
 public:
  Engine(const char* path, int threads, int context_tokens) {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    model_ = llama_model_load_from_file(path, llama_model_default_params());
    if (model_ == nullptr) throw std::runtime_error(std::string("cannot load ") + path);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(context_tokens);
    params.n_threads = threads;
    params.n_threads_batch = threads;
    batch_limit_ = params.n_batch;
    context_ = llama_init_from_model(model_, params);
    if (context_ == nullptr) throw std::runtime_error("cannot make a context");
    vocab_size_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
  }

  json generate(std::vector<llama_token> prompt, int max_tokens) {
    const auto start = Clock::now();
    llama_memory_clear(llama_get_memory(context_), false);
    for (size_t begin = 0; begin < prompt.size(); begin += batch_limit_) {
      decode(prompt.data() + begin, std::min<size_t>(batch_limit_, prompt.size() - begin));
    }
    std::vector<llama_token> token_ids = {argmax()};
    const double ttft = seconds_since(start);
    while (static_cast<int>(token_ids.size()) < max_tokens) {
      decode(&token_ids.back(), 1);
      token_ids.push_back(argmax());
    }
    return {{"ttft_s", ttft}, {"total_s", seconds_since(start)}, {"token_ids", token_ids}};
  }

 private:
  void decode(llama_token* tokens, size_t count) {
    if (llama_decode(context_, llama_batch_get_one(tokens, static_cast<int32_t>(count))) != 0) {
      throw std::runtime_error("llama_decode failed");
    }
  }

  llama_token argmax() {
    const float* logits = llama_get_logits_ith(context_, -1);
    return static_cast<llama_token>(std::max_element(logits, logits + vocab_size_) - logits);
  }

  llama_model* model_ = nullptr;
  llama_context* context_ = nullptr;
  size_t batch_limit_ = 0;
  int vocab_size_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: llama_cpp_worker MODEL.gguf THREADS CONTEXT_TOKENS\n");
    return 2;
  }
  try {
    const auto start = Clock::now();
    Engine engine(argv[1], std::atoi(argv[2]), std::atoi(argv[3]));
    std::cout << json{{"ready", true},
                      {"engine", "llama.cpp"},
                      {"version", LLAMA_CPP_VERSION},
                      {"load_s", seconds_since(start)},
                      {"system", llama_print_system_info()}}
              << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
      const json request = json::parse(line);
      std::cout << engine.generate(request.at("prompt"), request.at("max_tokens")) << std::endl;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llama_cpp_worker: %s\n", error.what());
    return 1;
  }
  return 0;
}
