# SPDX-License-Identifier: Apache-2.0
"""Gemma 3, text alone: RMS norms before and after every part, a norm on each head of q and k, GELU,
and five layers with a window, with a rotary base of their own, to one of full attention.

The embedding is multiplied by the root of hidden_size. Here the residual stream is divided by that
instead: norms before a part do not change, but for their epsilon, and norms after one have their
weights divided.

Source: Gemma Team, "Gemma 3 Technical Report" (2025).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lampo.models.architecture import (
    Architecture,
    Tensors,
    attention_tensors,
    gated_tensors,
    vector,
)
from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import MAX_HEAD_SCALE, MAX_LAYERS, ConfigReader
from lampo.models.rope import RopeConfig, rope_from_hf
from lampo.weights.fields import Fields

if TYPE_CHECKING:
    from lampo.models.layers import Block
    from lampo.models.projection import Norm
    from lampo.models.weight_loader import WeightLoader

_FULL, _SLIDING = "full_attention", "sliding_attention"
_PERIOD = 6  # layers from one of full attention to the next
_THETAS = {_FULL: 1e6, _SLIDING: 1e4}
_LAYERS_OF_27B = 62


class Gemma3(Architecture):
    model_type = "gemma3_text"
    hf_class = "Gemma3ForCausalLM"
    hf_base_class = "Gemma3TextModel"
    gguf_name = "gemma3"
    field_names: ClassVar = {"hidden_act": "hidden_activation"}

    def config(self, reader: ConfigReader) -> ModelConfig:
        f = reader.fields
        in_gguf = reader.tensors is not None
        bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        attention = reader.attention(
            default_kv_heads=4,
            default_head_dim=256,
            rotary=False,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=True,
        )
        # GGUF files have no field for the scale.
        per_head: float = attention.head_dim
        if in_gguf and reader.num_layers == _LAYERS_OF_27B:
            per_head = reader.hidden_size / attention.num_qo_heads
        if not in_gguf:
            per_head = f.number("query_pre_attn_scalar", 0, MAX_HEAD_SCALE, 256.0, open_low=True)
        scale = per_head**-0.5
        window = reader.window(default=4096)
        kinds = {
            _FULL: replace(attention, scale=scale, rope=_rope(reader, _FULL, attention.head_dim)),
            _SLIDING: replace(
                attention,
                scale=scale,
                rope=_rope(reader, _SLIDING, attention.head_dim),
                window=window,
            ),
        }
        feed_forward = reader.feed_forward(activations=("gelu_pytorch_tanh",))
        layers = tuple(LayerConfig(kinds[kind], feed_forward) for kind in _layer_types(reader))
        return reader.model(layers, tied=True)

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        def norm(name: str, gguf: str) -> Tensors:
            return vector(f"{name}.weight", f"{gguf}.weight", config.hidden_size, less_one=True)

        return {
            **norm("input_layernorm", "attn_norm"),
            **attention_tensors(config.hidden_size, layer.attention, less_one=True),
            **norm("post_attention_layernorm", "post_attention_norm"),
            **norm("pre_feedforward_layernorm", "ffn_norm"),
            **gated_tensors(config.hidden_size, layer.feed_forward),
            **norm("post_feedforward_layernorm", "post_ffw_norm"),
        }

    def outer_tensors(self, config: ModelConfig) -> Tensors:
        name, gguf = (f"{part}.weight" for part in self.norm)
        return {
            **super().outer_tensors(config),
            **vector(name, gguf, config.hidden_size, less_one=True),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.norm_of_scaled("input_layernorm"),
            loader.attention(
                layer.attention,
                post_norm=loader.norm_to_scaled("post_attention_layernorm"),
            ),
            loader.norm_of_scaled("pre_feedforward_layernorm"),
            loader.gated_feed_forward(
                layer.feed_forward,
                gelu_tanh=True,
                post_norm=loader.norm_to_scaled("post_feedforward_layernorm"),
            ),
        )

    def final_norm(self, loader: WeightLoader) -> Norm:
        return loader.norm_of_scaled(self.norm[0])


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


def _layer_types(reader: ConfigReader) -> list[str]:
    """The kind of every layer: by a list, or by the period of those with full attention."""
    f = reader.fields
    key = "layer_types"
    if reader.tensors is not None:
        key = f"{reader.architecture}.attention.sliding_window_pattern"
    types = f.get(key)
    names = {True: _SLIDING, False: _FULL, _SLIDING: _SLIDING, _FULL: _FULL}
    if isinstance(types, list):
        if len(types) != reader.num_layers or not all(
            isinstance(t, bool | str) and t in names for t in types
        ):
            raise f.error(key, f"a list of {reader.num_layers}, each {_SLIDING} or {_FULL}")
        return [names[t] for t in types]
    if reader.tensors is None:
        key = "sliding_window_pattern"
    period = f.integer(key, 1, MAX_LAYERS, _PERIOD)
    return [_SLIDING if (i + 1) % period else _FULL for i in range(reader.num_layers)]
