# SPDX-License-Identifier: Apache-2.0
"""Phi-3, Phi-3.5 and Phi-4-mini: Llama's block with q, k and v in one projection, and gate and up,
rotary embedding of a part of each head, and LongRoPE.

Source: Microsoft, "Phi-3 Technical Report" (2024); Ding et al., "LongRoPE" (2024).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lampo.models.architecture import Architecture, Tensors, matrix, vector
from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import ConfigReader
from lampo.models.rope import MAX_POSITIONS, RopeConfig
from lampo.weights.fields import Fields

if TYPE_CHECKING:
    from lampo.models.layers import Block
    from lampo.models.weight_loader import WeightLoader

_ORIGINAL = "original_max_position_embeddings"
_LONGROPE = ("longrope", "su", "yarn")  # the last two in the first files


class Phi3(Architecture):
    model_type = "phi3"
    hf_class = "Phi3ForCausalLM"
    hf_base_class = "Phi3Model"
    gguf_name = "phi3"
    models = "Phi-3, Phi-3.5, Phi-4-mini"
    features = ("partial rope", "longrope", "window")
    unused = re.compile(rf"{Architecture.unused.pattern}|rope_factors_(short|long)\.weight")

    def config(self, reader: ConfigReader) -> ModelConfig:
        attention = reader.attention(rotary=False, window=reader.window())
        read = _rope_from_hf if reader.tensors is None else _rope_from_gguf
        attention = replace(attention, rope=read(reader, attention.head_dim))
        layers = reader.layers(attention, reader.feed_forward())
        return reader.model(layers, default_eps=1e-5)

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        size, a, f = config.hidden_size, layer.attention, layer.feed_forward
        return {
            **vector("input_layernorm.weight", "attn_norm.weight", size),
            **matrix("self_attn.qkv_proj", "attn_qkv", a.q_size + 2 * a.kv_size, size),
            **matrix("self_attn.o_proj", "attn_output", size, a.q_size),
            **vector("post_attention_layernorm.weight", "ffn_norm.weight", size),
            **matrix("mlp.gate_up_proj", "ffn_up", 2 * f.size, size),
            **matrix("mlp.down_proj", "ffn_down", size, f.size),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.rms_norm("input_layernorm"),
            loader.attention(layer.attention, ["self_attn.qkv_proj"]),
            loader.rms_norm("post_attention_layernorm"),
            loader.gated_feed_forward(layer.feed_forward, gate_up="mlp.gate_up_proj"),
        )


def _rope_from_hf(reader: ConfigReader, head_dim: int) -> RopeConfig:
    f = reader.fields
    name = "rope_scaling" if f.mapping("rope_scaling") else "rope_parameters"
    values: dict[str, Any] = dict(f.mapping(name))
    for key in ("rope_theta", "partial_rotary_factor"):
        if values.get(key) is None:
            values[key] = f.get(key)
    if f.has(_ORIGINAL):
        values[_ORIGINAL] = f.get(_ORIGINAL)
    kind = "rope_type" if values.get("rope_type") is not None else "type"
    rope = Fields(f"{f.source}: {name}", values)
    part = rope.number("partial_rotary_factor", 0, 1, 1.0, open_low=True)
    rotary_dim = int(head_dim * part)
    if rotary_dim < 2 or rotary_dim % 2:
        raise rope.error("partial_rotary_factor", f"an even part of head_dim {head_dim}")
    theta = rope.number("rope_theta", 1, 1e12, 1e4, open_low=True)
    if rope.choice(kind, ("default", *_LONGROPE), "default") == "default":
        return RopeConfig(theta=theta, rotary_dim=rotary_dim)
    original = rope.integer(_ORIGINAL, 1, MAX_POSITIONS, 4096)
    factor = rope.number("factor", 0, 1e4, reader.context / original)
    return RopeConfig(
        theta=theta,
        rotary_dim=rotary_dim,
        scaling="longrope",
        original_max_position_embeddings=original,
        attention_factor=rope.number(
            "attention_factor", 0, 100, _attention_factor(factor, original), open_low=True
        ),
        freq_factors=_factors(rope, "short_factor", rotary_dim // 2),
        long_factors=_factors(rope, "long_factor", rotary_dim // 2),
    )


def _rope_from_gguf(reader: ConfigReader, head_dim: int) -> RopeConfig:
    f, prefix = reader.fields, f"{reader.architecture}.rope"
    rotary_dim = f.integer(f"{prefix}.dimension_count", 2, head_dim, head_dim)
    if rotary_dim % 2:
        raise f.error(f"{prefix}.dimension_count", "an even number")
    theta = f.number(f"{prefix}.freq_base", 1, 1e12, 1e4, open_low=True)
    f.choice(f"{prefix}.scaling.type", ("none", "longrope"), "none")
    short, long = (
        reader.freq_factors.get(f"rope_factors_{name}.weight") for name in ("short", "long")
    )
    if short is None or long is None:
        return RopeConfig(theta=theta, rotary_dim=rotary_dim, freq_factors=short)
    original = f.integer(
        f"{prefix}.scaling.original_context_length", 1, MAX_POSITIONS, reader.context
    )
    attention_factor = f.number(f"{prefix}.scaling.attn_factor", 0, 100, 1.0, open_low=True)
    try:
        return RopeConfig(
            theta=theta,
            rotary_dim=rotary_dim,
            scaling="longrope",
            original_max_position_embeddings=original,
            attention_factor=attention_factor,
            freq_factors=short,
            long_factors=long,
        )
    except ValueError as error:
        raise ValueError(f"{f.source}: {error}") from None


def _attention_factor(factor: float, original: int) -> float:
    """The factor that LongRoPE recommends for a context stretched by `factor`."""
    if factor <= 1 or original < 2:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _factors(rope: Fields, key: str, count: int) -> tuple[float, ...]:
    values = rope.get(key)
    if (
        not isinstance(values, Sequence)
        or len(values) != count
        or not all(
            isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= 1e9 for v in values
        )
    ):
        raise rope.error(key, f"a list of {count} numbers above 0")
    return tuple(float(v) for v in values)
