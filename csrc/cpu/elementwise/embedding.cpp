// SPDX-License-Identifier: Apache-2.0
// out[t] = table[token_ids[t]], or out[t] += where `accumulate`, from a dense table or from one row of a strip of a packed one.
// Bytes: one row per token. Always a small part of a step.
#include "common/dispatch.h"
#include "common/weight_format.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

template <class Out, class T>
void copy_row(const T* row, Out* out, int64_t size, bool accumulate) {
  for_each_vector(size, [&](int64_t i, int n) {
    const F32 value = load_n(row + i, n);
    store_n(out + i, accumulate ? load_n(out + i, n) + value : value, n);
  });
}

template <class Out>
void unpack_row(const EmbeddingParams& p, int64_t id, Out* out) {
  const StripLayout layout = strip_layout(p.format, p.hidden_size);
  const uint8_t* strip =
      static_cast<const uint8_t*>(p.table) + id / kStripRows * layout.strip_bytes;
  const int64_t lane = id % kStripRows;
  const int offset = p.format == WeightFormat::kQ4_0 ? 8 : 0;
  const auto write = [&](Out& to, float value) {
    to = from_float<Out>(p.accumulate ? to_float(to) + value : value);
  };
  for (int64_t g = 0; g < layout.groups; ++g) {
    const uint8_t* packed = strip + g * layout.group_bytes;
    Out* group = out + g * kGroupSize;
    const float scale = to_float(reinterpret_cast<const F16*>(packed + layout.scale_offset)[lane]);
    const float minimum =
        layout.has_min ? to_float(reinterpret_cast<const F16*>(packed + layout.min_offset)[lane])
                       : 0.0f;
    for (int i = 0; i < layout.words * 4; ++i) {
      const uint8_t byte = packed[(i / 4 * kStripRows + lane) * 4 + i % 4];
      if (layout.words == 8) {
        write(group[i], scale * static_cast<float>(static_cast<int8_t>(byte)));
      } else {
        const int low = (byte & 15) - offset;
        const int high = (byte >> 4) - offset;
        write(group[i], scale * static_cast<float>(low) + minimum);
        write(group[i + 16], scale * static_cast<float>(high) + minimum);
      }
    }
  }
}

}  // namespace

void embedding(const EmbeddingParams& p, const Team& team) {
  const Share mine = share_of(p.num_tokens, team);
  for (int64_t token = mine.begin; token < mine.end; ++token) {
    const int64_t id = p.id_dtype == DType::kI64 ? static_cast<const int64_t*>(p.token_ids)[token]
                                                 : static_cast<const int32_t*>(p.token_ids)[token];
    dispatch_dtype<float, BF16>(p.dtype, [&]<class Out>() {
      Out* out = static_cast<Out*>(p.out) + token * p.stride_out_token;
      if (p.packed) return unpack_row(p, id, out);
      dispatch_dtype<float, BF16, F16>(p.table_dtype, [&]<class T>() {
        copy_row(static_cast<const T*>(p.table) + id * p.stride_table_row, out, p.hidden_size,
                 p.accumulate);
      });
    });
  }
}

}  // namespace lampo::cpu::LAMPO_ISA
