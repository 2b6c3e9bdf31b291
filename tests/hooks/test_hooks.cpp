// SPDX-License-Identifier: Apache-2.0
// lampo._test_hooks: functions of csrc/ that no op exposes, for tests to measure. Built with
// LAMPO_TEST_HOOKS=ON alone; the shipped extension has none of them.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>

#include "common/deterministic_math.h"
#include "common/philox.h"
#include "cpu/runtime/team_size.h"
#include "cuda/linear/linear_tile.h"
#include "cuda/runtime/device_info.h"
#include "cuda/runtime/row_layout.h"
#include "cuda/sampling/sample_plan.h"

namespace py = pybind11;
namespace cuda = lampo::cuda;

namespace {

using Words2 = std::array<uint32_t, 2>;
using Words4 = std::array<uint32_t, 4>;

Words4 philox4x32_10(const Words4& counter, const Words2& key) {
  const lampo::PhiloxCounter random =
      lampo::philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, {{key[0], key[1]}});
  return {random.word[0], random.word[1], random.word[2], random.word[3]};
}

py::tuple row_layout(int64_t hidden_size, int element_size) {
  const cuda::RowLayout layout = cuda::choose_row_layout(hidden_size, element_size);
  return py::make_tuple(layout.threads_per_row, layout.rows_per_block, layout.rounds);
}

py::tuple element_layout(int64_t size, int element_size) {
  const cuda::ElementLayout layout = cuda::choose_element_layout(size, element_size);
  return py::make_tuple(layout.threads, layout.blocks_per_row);
}

/// Rows at once, parts of each, bytes of workspace, rows at once in it if they are not copied, of
/// logits of 2 and of 4 bytes.
py::tuple sample_plan(int64_t batch_size, int64_t vocab_size, int num_sms) {
  const int64_t rows = cuda::rows_at_once(batch_size, vocab_size);
  return py::make_tuple(rows, cuda::choose_parts(rows, vocab_size, num_sms),
                        cuda::sample_workspace_bytes(batch_size, vocab_size),
                        cuda::raw_rows_at_once(batch_size, vocab_size, 2),
                        cuda::raw_rows_at_once(batch_size, vocab_size, 4));
}

py::dict linear_tile(int64_t num_tokens, int64_t in_features, int64_t out_columns, bool gated,
                     int chunk_bytes, int in_flight, int num_sms, int64_t shared_bytes) {
  using py::literals::operator""_a;
  const cuda::LinearTile tile = cuda::choose_linear_tile(
      {num_tokens, in_features, out_columns, gated, chunk_bytes, in_flight}, num_sms, shared_bytes);
  return py::dict("strips"_a = tile.strips, "tokens"_a = tile.tokens,
                  "num_groups"_a = tile.num_groups, "slab_rounds"_a = tile.slab_rounds,
                  "one_slab"_a = tile.one_slab, "x_bytes"_a = tile.x_bytes,
                  "shared_bytes"_a = tile.shared_bytes);
}

/// Sizes of a team's jobs, one after another, of `time` ns: others wait for `late[size]` threads for
/// a share `waited[size]` of the time. Index 0 is a team of one.
std::vector<int> team_sizes(int num_jobs, int64_t time, const std::vector<double>& waited,
                            const std::vector<int>& late) {
  lampo::cpu::TeamSize team_size(static_cast<int>(waited.size()));
  lampo::cpu::TeamSize::Clock::time_point now;
  std::vector<int> sizes;
  for (int i = 0; i < num_jobs; ++i) {
    const int size = team_size.choose(now);
    now += std::chrono::nanoseconds(time);
    const auto lost = static_cast<int64_t>(waited[size - 1] * static_cast<double>(time));
    team_size.add(now, time, lost, lost * late[size - 1]);
    sizes.push_back(size);
  }
  return sizes;
}

}  // namespace

PYBIND11_MODULE(_test_hooks, m) {
  // common/: what decides a draw. The two functions of numbers also take arrays.
  m.def("philox4x32_10", &philox4x32_10, py::arg("counter"), py::arg("key"));
  m.def("exp2_times_2_40",
        py::vectorize([](float exponent) { return lampo::exp2_times_2_40(exponent); }));
  m.def("exponential_variate",
        py::vectorize([](uint32_t random) { return lampo::exponential_variate(random); }));

  // cpu/
  m.def("team_sizes", &team_sizes, py::arg("num_jobs"), py::arg("time"), py::arg("waited"),
        py::arg("late"));

  // cuda/: choices of launchers, and of the image that runs on a GPU.
  m.def("kernel_image_for", &lampo::kernel_image_for, py::arg("architectures"), py::arg("major"),
        py::arg("minor"));
  m.def("row_layout", &row_layout, py::arg("hidden_size"), py::arg("element_size"));
  m.def("element_layout", &element_layout, py::arg("size"), py::arg("element_size"));
  m.def("sample_plan", &sample_plan, py::arg("batch_size"), py::arg("vocab_size"),
        py::arg("num_sms"));
  m.def("linear_tile", &linear_tile, py::arg("num_tokens"), py::arg("in_features"),
        py::arg("out_columns"), py::arg("gated"), py::arg("chunk_bytes"), py::arg("in_flight"),
        py::arg("num_sms"), py::arg("shared_bytes"));
}
