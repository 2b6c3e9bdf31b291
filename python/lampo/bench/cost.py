# SPDX-License-Identifier: Apache-2.0
"""Bytes that an op must move and operations that it must do: the measure for lampo and peers.

The counts are the unavoidable ones: each input is read once, each output written once. A kernel
that reads data twice gets no credit for it. GB are decimal; a multiply and an add are two
operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lampo import _C

ELEMENT_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "fp8": 1, "int8": 1, "i32": 4}


@dataclass(frozen=True)
class Cost:
    """Bytes moved and operations done."""

    nbytes: int
    flops: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nbytes + other.nbytes, self.flops + other.flops)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.nbytes * times, self.flops * times)

    @property
    def intensity(self) -> float:
        """Operations per byte: below the machine's ratio of the two the op is bound by memory."""
        return self.flops / self.nbytes

    def gb_per_s(self, seconds: float) -> float:
        return self.nbytes / seconds / 1e9

    def tflop_per_s(self, seconds: float) -> float:
        return self.flops / seconds / 1e12

    def least_seconds(self, bytes_per_s: float, flops_per_s: float = math.inf) -> float:
        """The roofline: the minimum time on a machine with these two limits."""
        return max(self.nbytes / bytes_per_s, self.flops / flops_per_s)


def weight_bytes(weight_format: str, rows: int, columns: int) -> int:
    """Size of a weight matrix [rows, columns], plain or in blocks along the columns."""
    if weight_format not in ELEMENT_BYTES:
        blocks = -(-columns // _C.packed_block_size(weight_format))
        return rows * blocks * int(_C.packed_block_bytes(weight_format))
    return rows * columns * ELEMENT_BYTES[weight_format]


def rms_norm(
    num_tokens: int, hidden_size: int, dtype: str = "bf16", residual: bool = False
) -> Cost:
    elements = num_tokens * hidden_size
    size = ELEMENT_BYTES[dtype]
    streams = 4 if residual else 2  # x in, out; with the fused add also residual in and out
    weight = hidden_size * size  # read once, shared by the rows
    flops = elements * (5 if residual else 4)  # add; square, sum; times scale, times weight
    return Cost(streams * elements * size + weight, flops)


def gelu(num_tokens: int, size: int, dtype: str = "bf16") -> Cost:
    elements = num_tokens * size
    return Cost(2 * elements * ELEMENT_BYTES[dtype], elements * 8)  # a polynomial of tanh or erf


def causal_conv(
    batch: int, query_len: int, num_channels: int, width: int, dtype: str = "bf16"
) -> Cost:
    elements = batch * query_len * num_channels
    state = 2 * batch * (width - 1) * num_channels * 4  # in and out, float32
    streams = 2 * elements * ELEMENT_BYTES[dtype]  # x in, out
    weight = width * num_channels * 4
    return Cost(streams + state + weight, elements * (2 * width + 5))  # taps; silu


def gated_delta(
    batch: int,
    query_len: int,
    num_value_heads: int,
    num_key_heads: int,
    head_dim: int,
    dtype: str = "bf16",
) -> Cost:
    tokens = batch * query_len
    state = batch * num_value_heads * head_dim * head_dim
    rows = 2 * num_key_heads + 2 * num_value_heads  # q, k, v in, out
    streams = tokens * (rows * head_dim + 2 * num_value_heads) * ELEMENT_BYTES[dtype]
    # Per element of a state and token: decay, and a product each for S^T k, the update and S^T q.
    flops = 7 * query_len * state
    return Cost(streams + 2 * 4 * state, flops)  # states in and out, float32


def silu_mul(num_tokens: int, intermediate_size: int, dtype: str = "bf16") -> Cost:
    elements = num_tokens * intermediate_size
    streams = 3  # gate in, up in, out
    flops = elements * 5  # negate, exp, add 1, divide, times up
    return Cost(streams * elements * ELEMENT_BYTES[dtype], flops)


def embedding(
    num_tokens: int, hidden_size: int, weight_format: str = "bf16", dtype: str = "bf16"
) -> Cost:
    rows = weight_bytes(weight_format, num_tokens, hidden_size)  # only the requested rows
    out = num_tokens * hidden_size * ELEMENT_BYTES[dtype]
    flops = num_tokens * hidden_size if weight_format not in ELEMENT_BYTES else 0  # times scale
    return Cost(rows + out + 4 * num_tokens, flops)  # + token ids


def linear(
    num_tokens: int,
    in_features: int,
    out_features: int,
    weight_format: str = "bf16",
    dtype: str = "bf16",
    bias: bool = False,
) -> Cost:
    """`x W^T (+ b)`: x [num_tokens, in_features], W [out_features, in_features]."""
    size = ELEMENT_BYTES[dtype]
    weights = weight_bytes(weight_format, out_features, in_features)  # once for all tokens
    x = num_tokens * in_features * size
    out = num_tokens * out_features * size
    offsets = out_features * size if bias else 0
    flops = 2 * num_tokens * in_features * out_features  # one multiply-add per weight and token
    return Cost(weights + x + out + offsets, flops)


def expert_linear(
    num_tokens: int,
    num_rows: int,
    num_read: int,
    in_features: int,
    out_features: int,
    weight_format: str = "bf16",
    dtype: str = "f32",
) -> Cost:
    """A linear for each of `num_rows` pairs of a token and an expert, with `num_read` weights."""
    size = ELEMENT_BYTES[dtype]
    weights = num_read * weight_bytes(weight_format, out_features, in_features)
    x = num_tokens * in_features * size
    out = num_rows * out_features * size
    flops = 2 * num_rows * in_features * out_features
    return Cost(weights + x + out + 4 * num_rows, flops)  # + rows of x


def route_tokens(num_tokens: int, num_experts: int, top_k: int) -> Cost:
    logits = num_tokens * num_experts * 4
    pairs = num_tokens * top_k * 4 * 4  # expert, weight, place and token
    return Cost(logits + pairs + 4 * (num_experts + 1), num_tokens * num_experts)


def combine_experts(num_tokens: int, size: int, top_k: int, dtype: str = "f32") -> Cost:
    y = num_tokens * top_k * (size * ELEMENT_BYTES[dtype] + 8)  # rows, their places and weights
    out = num_tokens * size * ELEMENT_BYTES[dtype]
    return Cost(y + out, 2 * num_tokens * top_k * size)


def append_kv(
    num_tokens: int,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: str = "bf16",
    kv_dtype: str = "bf16",
) -> Cost:
    q = num_tokens * num_qo_heads * head_dim  # rotated in place: read and written
    kv = num_tokens * num_kv_heads * head_dim  # elements of k, and as many of v
    nbytes = 2 * q * ELEMENT_BYTES[dtype]
    nbytes += 2 * kv * (ELEMENT_BYTES[dtype] + ELEMENT_BYTES[kv_dtype])  # k, v in; pages out
    nbytes += num_tokens * (head_dim * 4 + 8 + 4)  # cos and sin in f32, slot, position
    return Cost(nbytes, 3 * (q + kv))  # a rotation: two multiplies and an add per element


def paged_attention(
    query_lens: list[int],
    seq_lens: list[int],
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: str = "bf16",
    kv_dtype: str = "bf16",
    window: int = 0,
) -> Cost:
    """Causal attention of the last query_lens[i] of seq_lens[i] tokens; decode: query_lens all 1.

    window: attend to this many tokens at most, 0 for all.
    """
    nbytes = flops = 0
    for query_len, seq_len in zip(query_lens, seq_lens, strict=True):
        if query_len == 0 or seq_len == 0:
            continue
        before = seq_len - query_len  # tokens in the cache before the first query
        if window:
            pairs = sum(min(before + i + 1, window) for i in range(query_len))
            tokens = min(seq_len, window + query_len - 1)
        else:
            pairs = query_len * before + query_len * (query_len + 1) // 2  # the causal triangle
            tokens = seq_len
        nbytes += 2 * tokens * num_kv_heads * head_dim * ELEMENT_BYTES[kv_dtype]  # k and v, once
        nbytes += 2 * query_len * num_qo_heads * head_dim * ELEMENT_BYTES[dtype]  # q in, out
        flops += pairs * num_qo_heads * head_dim * 4  # q k^T and p v, a multiply-add each
        flops += pairs * num_qo_heads * 4  # scale, maximum, exp, sum
    return Cost(nbytes, flops)


def paged_decode(
    batch_size: int,
    seq_len: int,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    **options: Any,
) -> Cost:
    """One new token for each of batch_size sequences, which have seq_len tokens with it."""
    lens = ([1] * batch_size, [seq_len] * batch_size)
    return paged_attention(*lens, num_qo_heads, num_kv_heads, head_dim, **options)


def paged_prefill(
    batch_size: int,
    seq_len: int,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    **options: Any,
) -> Cost:
    """Whole prompts of seq_len tokens."""
    lens = ([seq_len] * batch_size, [seq_len] * batch_size)
    return paged_attention(*lens, num_qo_heads, num_kv_heads, head_dim, **options)


def merge_states(
    num_splits: int, num_tokens: int, num_heads: int, head_dim: int, dtype: str = "bf16"
) -> Cost:
    partial = num_splits * num_tokens * num_heads
    out = num_tokens * num_heads * (head_dim * ELEMENT_BYTES[dtype] + 4)  # and the lse
    return Cost(partial * (head_dim + 1) * 4 + out, partial * (2 * head_dim + 4))


def token_logprobs(batch_size: int, vocab_size: int, num_top: int = 0, dtype: str = "f32") -> Cost:
    elements = batch_size * vocab_size
    results = batch_size * (8 + 4 + 4 + 8 * num_top)  # token in; logprob, rank, table out
    return Cost(elements * ELEMENT_BYTES[dtype] + results, elements * 3)  # maximum, exp, sum


def sample(batch_size: int, vocab_size: int, dtype: str = "f32") -> Cost:
    """Logits to token: one read of the logits is unavoidable, the token ids are the output."""
    elements = batch_size * vocab_size
    flops = elements * 4  # temperature, maximum, exp, sum
    return Cost(elements * ELEMENT_BYTES[dtype] + 4 * batch_size, flops)


@dataclass(frozen=True)
class ModelShape:
    """The properties of a model that determine the cost of a step."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    weight_format: str = "bf16"  # of the linears in the layers
    head_format: str = "bf16"  # of the LM head
    kv_dtype: str = "bf16"


# The default model as its GGUF file stores it: Q4_1 linears, one tied Q8_0 embedding.
SMOLLM2_135M = ModelShape(30, 576, 1536, 9, 3, 64, 49152, "q4_1", "q8_0")


def step(
    model: ModelShape, query_lens: list[int], seq_lens: list[int], dtype: str = "bf16"
) -> Cost:
    """One forward pass over the last query_lens[i] tokens per sequence, and one draw each.

    Activations between the ops are not counted: they may stay in the CPU's cache. The weights, the
    reads and writes of the KV cache, the logits and the arithmetic are. The last layer needs every
    key and value, and after them only the last token per sequence.
    """
    m, rows = model, len(query_lens)
    q_size, kv_size = m.num_qo_heads * m.head_dim, m.num_kv_heads * m.head_dim
    heads = (m.num_qo_heads, m.num_kv_heads, m.head_dim)

    def product(tokens: int, in_features: int, out_features: int) -> Cost:
        weights = weight_bytes(m.weight_format, out_features, in_features)
        return Cost(weights, 2 * tokens * in_features * out_features)

    def layer(lens: list[int]) -> Cost:
        """lens: of the queries."""
        tokens, queries = sum(query_lens), sum(lens)
        attention = paged_attention(lens, seq_lens, *heads, kv_dtype=m.kv_dtype)
        q_and_out = 2 * queries * q_size * ELEMENT_BYTES[dtype]  # activations again
        new_kv = 2 * tokens * kv_size * ELEMENT_BYTES[m.kv_dtype]
        norms = Cost(2 * m.hidden_size * 4, (tokens + queries) * m.hidden_size * 5)
        return (
            product(queries, m.hidden_size, q_size)
            + product(tokens, m.hidden_size, 2 * kv_size)
            + Cost(attention.nbytes - q_and_out + new_kv, attention.flops)
            + product(queries, q_size, m.hidden_size)
            + product(queries, m.hidden_size, 2 * m.intermediate_size)
            + product(queries, m.intermediate_size, m.hidden_size)
            + norms
        )

    head = Cost(
        weight_bytes(m.head_format, m.vocab_size, m.hidden_size),
        2 * rows * m.hidden_size * m.vocab_size,  # only the last token per sequence
    )
    layers = layer(query_lens) * (m.num_layers - 1) + layer([1] * rows)
    return layers + head + sample(rows, m.vocab_size)


def decode_step(model: ModelShape, batch_size: int = 1, depth: int = 0) -> Cost:
    """One token for each of batch_size sequences with `depth` tokens in the cache before it."""
    return step(model, [1] * batch_size, [depth + 1] * batch_size)


def prefill_step(model: ModelShape, num_tokens: int, depth: int = 0) -> Cost:
    """A prompt of num_tokens after `depth` cached tokens, up to its first new token."""
    return step(model, [num_tokens], [depth + num_tokens])


def model_shape_of_gguf(path: str | Path) -> ModelShape:
    """The shape and the weight formats of a GGUF file of the Llama family."""
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    architecture = reader.fields["general.architecture"].contents()
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def field(name: str) -> int:
        return int(reader.fields[f"{architecture}.{name}"].contents())

    embedding_table = tensors["token_embd.weight"]
    head = tensors.get("output.weight", embedding_table)
    heads = field("attention.head_count")
    return ModelShape(
        num_layers=field("block_count"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_qo_heads=heads,
        num_kv_heads=field("attention.head_count_kv"),
        head_dim=field("embedding_length") // heads,
        vocab_size=int(embedding_table.shape[1]),
        weight_format=tensors["blk.0.ffn_up.weight"].tensor_type.name.lower(),
        head_format=head.tensor_type.name.lower(),
    )
