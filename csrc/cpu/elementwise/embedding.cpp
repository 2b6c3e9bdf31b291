// SPDX-License-Identifier: Apache-2.0
// out[t] = table[token_ids[t]], or out[t] += it, from a dense table or from one row of a strip of a
// packed one.
// Bytes: one row per token. Always a small part of a step.
#include "common/dispatch.h"
#include "common/formats/formats.h"
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

template <class Format, class Out>
void unpack_row(const EmbeddingParams& p, int64_t id, Out* out) {
  using Group = StripGroup<Format>;
  const uint8_t* block =
      static_cast<const uint8_t*>(p.table) + id / kStripRows * Group::strip_bytes(p.hidden_size);
  const int64_t lane = id % kStripRows;
  for (int64_t i = 0; i < p.hidden_size; i += Format::kBlockSize, block += Group::kBlockBytes) {
    for (int at = 0; at < Format::kBlockSize; at += Format::kScaleSize) {
      const uint8_t* group = block + Group::kFactorBytes + at / kGroupSize * Group::kBytes;
      const int first = at % kGroupSize, set = first / Format::kScaleSize;
      const float scale = scale_of<Format>(block, group, lane, set);
      const float minimum = minimum_of<Format>(block, group, lane, set);
      for (int j = 0; j < Format::kScaleSize; ++j) {
        const int code = Group::code(group, lane, first + j);
        const float value = decode(value_of<Format>(code), scale, minimum);
        Out& to = out[i + at + j];
        to = from_float<Out>(p.accumulate ? to_float(to) + value : value);
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
      if (p.packed) {
        return dispatch_format(p.format, [&]<class Format>() { unpack_row<Format>(p, id, out); });
      }
      dispatch_dtype<float, BF16, F16>(p.table_dtype, [&]<class T>() {
        copy_row(static_cast<const T*>(p.table) + id * p.stride_table_row, out, p.hidden_size,
                 p.accumulate);
      });
    });
  }
}

}  // namespace lampo::cpu::LAMPO_ISA
