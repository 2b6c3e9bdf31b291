// SPDX-License-Identifier: Apache-2.0
// The llama.cpp side of the benchmarks: one long-lived process that answers JSON lines.
//
//   llama_cpp_worker FLASH_ATTENTION CACHE MODEL.gguf THREADS  (auto, on or off; f16 or q8_0)
//   -> {"ready": true, "engine": "llama.cpp", ...}
//   <- {"prompts": [[1, 2, 3]], "max_tokens": 64}
//   -> {"ttft_s": 0.1, "total_s": 0.5, "token_ids": [[...]]}
//   <- {"prompts": [[1, 2, 3]], "logits_file": "FILE"}
//   -> {"rows": 3}         FILE has the logits that follow each token, float32 [3, vocabulary]
//
// Greedy, end-of-text ignored; prompts of one request have one length and decode together. With
// "reuse": true a request whose prompts are those of the request before starts from their cache, as
// the time of a decode step at some depth does not depend on when that depth was reached. Otherwise
// the library's defaults: batches of 2048 in pieces of 512, weights repacked where it
// knows how. The clock starts when the request has been parsed; the first token's time ends when
// the ids of all first tokens are known. install_peers builds this file.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"
#include "nlohmann/json.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Tokens = std::vector<llama_token>;
using nlohmann::json;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A reduction that the compiler vectorizes, then a search: std::max_element is eight times slower,
// which would count at 32 sequences.
llama_token argmax(const float* logits, int count) {
  float best = logits[0];
  for (int i = 1; i < count; ++i) best = logits[i] > best ? logits[i] : best;
  return static_cast<llama_token>(std::find(logits, logits + count, best) - logits);
}

const std::map<std::string, llama_flash_attn_type> kFlashAttention = {
    {"auto", LLAMA_FLASH_ATTN_TYPE_AUTO},
    {"on", LLAMA_FLASH_ATTN_TYPE_ENABLED},
    {"off", LLAMA_FLASH_ATTN_TYPE_DISABLED}};

const std::map<std::string, ggml_type> kCache = {{"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}};

class Engine {
 public:
  Engine(const char* path, int threads, const std::string& flash_attention,
         const std::string& cache) {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    model_ = llama_model_load_from_file(path, llama_model_default_params());
    if (model_ == nullptr) throw std::runtime_error(std::string("cannot load ") + path);
    vocab_size_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
    params_ = llama_context_default_params();
    params_.n_threads = threads;
    params_.n_threads_batch = threads;
    params_.flash_attn_type = kFlashAttention.at(flash_attention);
    params_.type_k = params_.type_v = kCache.at(cache);
    batch_ = llama_batch_init(static_cast<int32_t>(params_.n_batch), 0, 1);
  }

  json generate(const std::vector<Tokens>& prompts, int max_tokens, bool reuse) {
    const size_t num_seqs = prompts.size(), length = prompts[0].size();
    reserve(num_seqs, length + static_cast<size_t>(max_tokens));
    const auto start = Clock::now();
    llama_memory_t memory = llama_get_memory(context_);
    size_t done = 0;
    if (reuse && prompts == cached_) {
      done = length - 1;  // the last token again, for its logits
      llama_memory_seq_rm(memory, -1, static_cast<llama_pos>(done), -1);
    } else {
      llama_memory_clear(memory, false);
    }
    cached_ = prompts;
    std::vector<Tokens> token_ids(num_seqs);
    for (size_t seq = 0; seq < num_seqs; ++seq) {
      for (size_t at = done; at < length; ++at) {
        if (batch_.n_tokens == static_cast<int32_t>(params_.n_batch)) flush(token_ids);
        add(prompts[seq][at], at, seq, at + 1 == length);
      }
    }
    flush(token_ids);
    const double ttft = seconds_since(start);
    for (size_t at = length; at + 1 < length + static_cast<size_t>(max_tokens); ++at) {
      for (size_t seq = 0; seq < num_seqs; ++seq) add(token_ids[seq].back(), at, seq, true);
      flush(token_ids);
    }
    return {{"ttft_s", ttft}, {"total_s", seconds_since(start)}, {"token_ids", token_ids}};
  }

  json write_logits(const Tokens& tokens, const std::string& path) {
    reserve(1, tokens.size());
    llama_memory_clear(llama_get_memory(context_), false);
    cached_.clear();
    std::ofstream out(path, std::ios::binary);
    for (size_t at = 0; at < tokens.size(); ++at) {
      add(tokens[at], at, 0, true);
      if (batch_.n_tokens < 512 && at + 1 < tokens.size()) continue;
      decode();
      for (int i = 0; i < batch_.n_tokens; ++i) {
        out.write(reinterpret_cast<const char*>(llama_get_logits_ith(context_, i)),
                  static_cast<std::streamsize>(sizeof(float)) * vocab_size_);
      }
      batch_.n_tokens = 0;
    }
    if (!out.flush()) throw std::runtime_error("cannot write " + path);
    return {{"rows", tokens.size()}};
  }

 private:
  // A context with room for num_seqs sequences of `tokens` tokens, each with a cache of its own.
  void reserve(size_t num_seqs, size_t tokens) {
    const uint32_t wanted = static_cast<uint32_t>((tokens + 255) / 256 * 256 * num_seqs);
    if (context_ != nullptr && params_.n_seq_max == num_seqs && params_.n_ctx >= wanted) return;
    if (context_ != nullptr) llama_free(context_);
    params_.n_seq_max = static_cast<uint32_t>(num_seqs);
    params_.n_ctx = wanted;
    context_ = llama_init_from_model(model_, params_);
    if (context_ == nullptr) throw std::runtime_error("cannot make a context");
    cached_.clear();
  }

  void add(llama_token token, size_t position, size_t seq, bool wants_logits) {
    const int i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = static_cast<llama_pos>(position);
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = static_cast<llama_seq_id>(seq);
    batch_.logits[i] = wants_logits ? 1 : 0;
  }

  void decode() {
    if (llama_decode(context_, batch_) != 0) throw std::runtime_error("llama_decode failed");
  }

  // Computes the batch and appends the best token after each row that wants logits.
  void flush(std::vector<Tokens>& token_ids) {
    decode();
    for (int i = 0; i < batch_.n_tokens; ++i) {
      if (!batch_.logits[i]) continue;
      const float* logits = llama_get_logits_ith(context_, i);
      token_ids[static_cast<size_t>(batch_.seq_id[i][0])].push_back(argmax(logits, vocab_size_));
    }
    batch_.n_tokens = 0;
  }

  llama_model* model_ = nullptr;
  llama_context* context_ = nullptr;
  llama_context_params params_{};
  llama_batch batch_{};
  int vocab_size_ = 0;
  std::vector<Tokens> cached_;  // the prompts of the request before
};

json answer(Engine& engine, const json& request) {
  const auto prompts = request.at("prompts").get<std::vector<Tokens>>();
  if (request.contains("logits_file")) {
    return engine.write_logits(prompts.at(0), request.at("logits_file"));
  }
  return engine.generate(prompts, request.at("max_tokens"), request.value("reuse", false));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5 || kFlashAttention.count(argv[1]) == 0 || kCache.count(argv[2]) == 0) {
    std::fprintf(stderr, "usage: llama_cpp_worker auto|on|off f16|q8_0 MODEL.gguf THREADS\n");
    return 2;
  }
  try {
    const auto start = Clock::now();
    Engine engine(argv[3], std::atoi(argv[4]), argv[1], argv[2]);
    std::cout << json{{"ready", true},
                      {"engine", "llama.cpp"},
                      {"version", LLAMA_CPP_VERSION},
                      {"load_s", seconds_since(start)},
                      {"system", llama_print_system_info()}}
              << std::endl;
    for (std::string line; std::getline(std::cin, line);) {
      std::cout << answer(engine, json::parse(line)) << std::endl;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "llama_cpp_worker: %s\n", error.what());
    return 1;
  }
  return 0;
}
