// SPDX-License-Identifier: Apache-2.0
// The gated delta rule (Gated DeltaNet). A value head has a state S [key_dim, value_dim] in
// float32; per token, with q and k normed to length 1 and q times scale:
//   S <- e^g S;  d = beta (v - S^T k);  S <- S + k d^T;  o = S^T q
//   g = decay * softplus(a + dt_bias);  beta = sigmoid(b)
// and, with a gate, out = norm_weight * o / sqrt(mean(o^2) + eps) * silu(gate).
//
// Prompts take the same recurrence as decoding, token by token: a chunked form would give a token
// other bits in a whole chunk than in a part of one. The state stays in the first-level cache
// instead: a piece of work is a head of a sequence, which passes a tile of 16 tokens over one strip
// of columns of S (4 vectors: 32 KiB with AVX-512 and key_dim 128) after the other. Columns are
// independent of each other, so every sum over key_dim is in one fixed order.
//
// Bytes: q, k, v, out once, S twice per call. FLOPs: 7 key_dim value_dim per token and head. A
// decoding step is bound by the memory of S, a prompt by multiply-adds on the first-level cache.
#include "common/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/vec/math.h"
#include "cpu/vec/row.h"

namespace lampo::cpu::LAMPO_ISA {
namespace {

constexpr int kTile = 16;  // tokens
constexpr int kStripVectors = 4;
constexpr float kNormEps = 1e-6f;

struct Tile {
  float q[kTile][kMaxGatedDeltaDim];
  float k[kTile][kMaxGatedDeltaDim];
  float o[kTile][kMaxGatedDeltaDim];
  float keep[kTile];  // e^g
  float beta[kTile];
};

inline float first_lane(F32 x) {
  float lanes[F32::kWidth];
  store(lanes, x);
  return lanes[0];
}

/// log(1 + e^x): max(x, 0) + log(1 + e^-|x|), the logarithm by the series of 2 atanh(y / (2 + y)).
inline float softplus(float x) {
  const float y = first_lane(exp_nonpositive(F32(x > 0.0f ? -x : x)));
  const float z = y / (2.0f + y), square = z * z;
  float series = 1.0f / 15.0f;
  for (int odd = 13; odd >= 1; odd -= 2) series = series * square + 1.0f / static_cast<float>(odd);
  return (x > 0.0f ? x : 0.0f) + 2.0f * z * series;
}

/// to = x * factor / sqrt(sum(x^2) + eps).
template <class T>
inline void l2_norm(const T* x, int64_t size, float factor, float* to) {
  F32 squares;
  for_each_vector(size, [&](int64_t i, int n) {
    const F32 value = load_n(x + i, n);
    squares = fma(value, value, squares);
  });
  const F32 scale(factor / __builtin_sqrtf(reduce_add(squares) + kNormEps));
  for_each_vector(size, [&](int64_t i, int n) { store_n(to + i, load_n(x + i, n) * scale, n); });
}

/// The tokens of a tile over kVectors vectors of columns of S, or a single one of n columns.
/// v: the tile's values, o: the tile's outputs, both at the first column.
template <int kVectors, class T>
inline void pass_strip(const Tile& tile, int tokens, int64_t key_dim, int64_t value_dim, int n,
                       float* state, const T* v, int64_t stride_v_token, float* o) {
  constexpr int W = F32::kWidth;
  const int width = kVectors > 1 ? W : n;
  for (int t = 0; t < tokens; ++t) {
    const F32 keep(tile.keep[t]), beta(tile.beta[t]);
    // Even and odd rows: two chains of additions per vector.
    F32 even[kVectors], odd[kVectors];
    int64_t row = 0;
    for (; row + 2 <= key_dim; row += 2) {
      const F32 k0(tile.k[t][row]), k1(tile.k[t][row + 1]);
      const float* s = state + row * value_dim;
      for (int c = 0; c < kVectors; ++c) {
        even[c] = fma(load_n(s + c * W, width), k0, even[c]);
        odd[c] = fma(load_n(s + value_dim + c * W, width), k1, odd[c]);
      }
    }
    if (row < key_dim) {
      const F32 k0(tile.k[t][row]);
      for (int c = 0; c < kVectors; ++c) {
        even[c] = fma(load_n(state + row * value_dim + c * W, width), k0, even[c]);
      }
    }
    F32 delta[kVectors], out[kVectors];
    for (int c = 0; c < kVectors; ++c) {
      const F32 value = load_n(v + t * stride_v_token + c * W, width);
      delta[c] = beta * (value - keep * (even[c] + odd[c]));
    }
    for (row = 0; row < key_dim; ++row) {
      const F32 k(tile.k[t][row]), q(tile.q[t][row]);
      float* s = state + row * value_dim;
      for (int c = 0; c < kVectors; ++c) {
        const F32 updated = fma(k, delta[c], keep * load_n(s + c * W, width));
        store_n(s + c * W, updated, width);
        out[c] = fma(updated, q, out[c]);
      }
    }
    for (int c = 0; c < kVectors; ++c) {
      store_n(o + t * kMaxGatedDeltaDim + c * W, out[c], width);
    }
  }
}

/// One row of the output: o, or its gated norm.
template <class T>
inline void write_row(const GatedDeltaParams& p, const float* o, const T* gate, T* out) {
  if (p.gate == nullptr) {
    for_each_vector(p.value_dim, [&](int64_t i, int n) { store_n(out + i, load_n(o + i, n), n); });
    return;
  }
  F32 squares;
  for_each_vector(p.value_dim, [&](int64_t i, int n) {
    const F32 value = load_n(o + i, n);
    squares = fma(value, value, squares);
  });
  const float mean = reduce_add(squares) / static_cast<float>(p.value_dim);
  const F32 scale(1.0f / __builtin_sqrtf(mean + p.eps));
  for_each_vector(p.value_dim, [&](int64_t i, int n) {
    const F32 z = load_n(gate + i, n);
    const F32 normed = load_n(o + i, n) * scale * load_n(p.norm_weight + i, n);
    store_n(out + i, normed * (z * sigmoid(z)), n);
  });
}

/// All new tokens of a sequence in one value head.
template <class T>
void run_head(const GatedDeltaParams& p, int64_t seq, int64_t head) {
  const int64_t begin = p.batch.cu_seqlens_q[seq], end = p.batch.cu_seqlens_q[seq + 1];
  const int64_t key_head =
      p.tiled ? head % p.num_key_heads : head / (p.num_value_heads / p.num_key_heads);
  float* state =
      p.state + p.batch.state_slots[seq] * p.stride_state_slot + head * p.key_dim * p.value_dim;
  if (p.batch.seq_lens[seq] == end - begin) {
    for_each_vector(p.key_dim * p.value_dim,
                    [&](int64_t i, int n) { store_n(state + i, F32(), n); });
  }
  const T* q = static_cast<const T*>(p.q) + key_head * p.stride_q_head;
  const T* k = static_cast<const T*>(p.k) + key_head * p.stride_k_head;
  const T* v = static_cast<const T*>(p.v) + head * p.stride_v_head;
  const T* a = static_cast<const T*>(p.a) + head;
  const T* b = static_cast<const T*>(p.b) + head;
  const T* gate = static_cast<const T*>(p.gate) + head * p.stride_gate_head;
  T* out = static_cast<T*>(p.out) + head * p.stride_out_head;
  Tile tile;
  for (int64_t first = begin; first < end; first += kTile) {
    const int tokens = static_cast<int>(end - first < kTile ? end - first : kTile);
    for (int t = 0; t < tokens; ++t) {
      const int64_t token = first + t;
      l2_norm(q + token * p.stride_q_token, p.key_dim, p.scale, tile.q[t]);
      l2_norm(k + token * p.stride_k_token, p.key_dim, 1.0f, tile.k[t]);
      const float dt = first_lane(load_n(a + token * p.stride_a_token, 1)) + p.dt_bias[head];
      const float g = p.decay[head] * softplus(dt);
      tile.keep[t] = first_lane(exp_nonpositive(F32(g > 0.0f ? 0.0f : g)));
      tile.beta[t] = first_lane(sigmoid(load_n(b + token * p.stride_b_token, 1)));
    }
    const T* values = v + first * p.stride_v_token;
    constexpr int64_t kStrip = kStripVectors * F32::kWidth;
    int64_t column = 0;
    for (; column + kStrip <= p.value_dim; column += kStrip) {
      pass_strip<kStripVectors>(tile, tokens, p.key_dim, p.value_dim, F32::kWidth, state + column,
                                values + column, p.stride_v_token, tile.o[0] + column);
    }
    for (; column < p.value_dim; column += F32::kWidth) {
      const int64_t left = p.value_dim - column;
      pass_strip<1>(tile, tokens, p.key_dim, p.value_dim,
                    static_cast<int>(left < F32::kWidth ? left : F32::kWidth), state + column,
                    values + column, p.stride_v_token, tile.o[0] + column);
    }
    for (int t = 0; t < tokens; ++t) {
      const int64_t token = first + t;
      write_row(p, tile.o[t], gate + token * p.stride_gate_token, out + token * p.stride_out_token);
    }
  }
}

template <class T>
void run(const GatedDeltaParams& p, const Team& team) {
  const int64_t pieces = p.batch.batch_size * p.num_value_heads;
  const auto share = [&](int rank) { return share_of(pieces, Team{rank, team.size}); };
  for_each_piece(
      team, [&](int rank) { return share(rank).end - share(rank).begin; },
      [&](int rank, int64_t i) {
        const int64_t piece = share(rank).begin + i, seq = piece / p.num_value_heads;
        if (p.batch.cu_seqlens_q[seq] == p.batch.cu_seqlens_q[seq + 1]) return;
        run_head<T>(p, seq, piece % p.num_value_heads);
      });
}

}  // namespace

void gated_delta(const GatedDeltaParams& p, const Team& team) {
  dispatch_dtype<float, BF16>(p.dtype, [&]<class T>() { run<T>(p, team); });
}

}  // namespace lampo::cpu::LAMPO_ISA
