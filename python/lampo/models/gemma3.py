# SPDX-License-Identifier: Apache-2.0
"""Gemma 3, text alone: Gemma's block, a norm on each head of q and k, and five layers with a
window, with a rotary base of their own, to one of full attention.

Source: Gemma Team, "Gemma 3 Technical Report" (2025).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import ConfigReader
from lampo.models.gemma import Gemma, score_scale
from lampo.models.rope import RopeConfig, rope_from_hf
from lampo.weights.fields import Fields

_FULL, _SLIDING = "full_attention", "sliding_attention"
_PERIOD = 6  # layers from one of full attention to the next
_THETAS = {_FULL: 1e6, _SLIDING: 1e4}
_LAYERS_OF_27B = 62


class Gemma3(Gemma):
    model_type = "gemma3_text"
    hf_class = "Gemma3ForCausalLM"
    hf_base_class = "Gemma3TextModel"
    gguf_name = "gemma3"
    models = "Gemma 3, text"
    features = ("sandwich norms", "q/k norms", "window", "two ropes")

    def config(self, reader: ConfigReader) -> ModelConfig:
        bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        attention = reader.attention(
            default_kv_heads=4,
            default_head_dim=256,
            rotary=False,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=True,
        )
        scale = score_scale(reader, attention, _LAYERS_OF_27B)
        window = reader.window(default=4096)
        kinds = {
            False: replace(attention, scale=scale, rope=_rope(reader, _FULL, attention.head_dim)),
            True: replace(
                attention,
                scale=scale,
                rope=_rope(reader, _SLIDING, attention.head_dim),
                window=window,
            ),
        }
        feed_forward = reader.feed_forward(activations=("gelu_pytorch_tanh",))
        layers = tuple(
            LayerConfig(kinds[sliding], feed_forward) for sliding in reader.sliding_layers(_PERIOD)
        )
        return reader.model(layers, tied=True)


def _rope(reader: ConfigReader, kind: str, head_dim: int) -> RopeConfig:
    """The rotary embedding of the layers of one kind."""
    f = reader.fields
    if reader.tensors is not None:
        rope = reader.rope(head_dim)
        if kind == _FULL:
            return rope
        key = f"{reader.architecture}.rope.freq_base_swa"
        theta = f.number(key, 1, 1e12, _THETAS[_SLIDING], open_low=True)
        return RopeConfig(theta=theta, rotary_dim=rope.rotary_dim)
    values: dict[str, Any] = {}
    parameters = f.mapping("rope_parameters")
    if kind in parameters:
        values = {"rope_parameters": parameters[kind]}
    elif kind == _FULL:
        values = {name: f.get(name) for name in ("rope_theta", "rope_scaling")}
    else:
        values = {"rope_theta": f.get("rope_local_base_freq")}
    return rope_from_hf(Fields(f.source, values), head_dim, reader.context, _THETAS[kind])
