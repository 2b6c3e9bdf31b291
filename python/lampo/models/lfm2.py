# SPDX-License-Identifier: Apache-2.0
"""LFM2: short convolutions between gates in most layers, attention with a norm on each head of q
and k in the others.

Source: Liquid AI, "LFM2 Technical Report" (2025).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from lampo.models.architecture import (
    Architecture,
    StoredTensor,
    Tensors,
    matrix,
    vector,
)
from lampo.models.config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    MixerConfig,
    ModelConfig,
    ShortConvConfig,
)
from lampo.models.config_reader import MAX_HIDDEN, MAX_INTERMEDIATE, ConfigReader
from lampo.weights.fields import Fields

if TYPE_CHECKING:
    from lampo.models.layers import Block, Mixer
    from lampo.models.weight_loader import WeightLoader

_FULL, _CONV = "full_attention", "conv"
_OUT = "self_attn.out_proj"


class LFM2(Architecture):
    models = "LFM2, LFM2.5, dense"
    features = ("short convolutions", "q/k norms")
    model_type = "lfm2"
    hf_class = "Lfm2ForCausalLM"
    hf_base_class = "Lfm2Model"
    gguf_name = "lfm2"
    field_names: ClassVar = {"rms_norm_eps": "norm_eps"}
    norm = ("model.embedding_norm", "token_embd_norm")

    def config(self, reader: ConfigReader) -> ModelConfig:
        kinds = _layer_types(reader)
        attention = reader.attention(default_kv_heads=8, default_theta=1e6)
        f = reader.fields
        in_gguf = reader.tensors is not None
        key = f"{reader.architecture}.shortconv.l_cache" if in_gguf else "conv_L_cache"
        width = f.integer(key, 2, 4, 3)
        bias = reader.bias("conv_bias", "blk.0.shortconv.in_proj.bias")
        conv = ShortConvConfig(reader.hidden_size, width, bias)
        mixers: dict[str, MixerConfig] = {_FULL: attention, _CONV: conv}
        feed_forward = reader.feed_forward() if in_gguf else _feed_forward(f)
        layers = tuple(LayerConfig(mixers[kind], feed_forward) for kind in kinds)
        tied = in_gguf or f.boolean("tie_embedding", True)
        return reader.model(layers, tied=tied)

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        size, mixer = config.hidden_size, layer.mixer
        found = {
            **vector("operator_norm.weight", "attn_norm.weight", size),
            **vector("ffn_norm.weight", "ffn_norm.weight", size),
            **matrix("feed_forward.w1", "ffn_gate", layer.feed_forward.size, size),
            **matrix("feed_forward.w3", "ffn_up", layer.feed_forward.size, size),
            **matrix("feed_forward.w2", "ffn_down", size, layer.feed_forward.size),
        }
        if isinstance(mixer, AttentionConfig):
            return found | {
                **matrix("self_attn.q_proj", "attn_q", mixer.q_size, size),
                **matrix("self_attn.k_proj", "attn_k", mixer.kv_size, size),
                **matrix("self_attn.v_proj", "attn_v", mixer.kv_size, size),
                **matrix(_OUT, "attn_output", size, mixer.q_size),
                **vector("self_attn.q_layernorm.weight", "attn_q_norm.weight", mixer.head_dim),
                **vector("self_attn.k_layernorm.weight", "attn_k_norm.weight", mixer.head_dim),
            }
        assert isinstance(mixer, ShortConvConfig)
        gguf, bias = "shortconv", mixer.bias
        taps = StoredTensor(f"{gguf}.conv.weight", (size, mixer.width), is_conv=True)
        return found | {
            "conv.conv.weight": taps,
            **(vector("conv.conv.bias", f"{gguf}.conv.bias", size) if bias else {}),
            **matrix("conv.in_proj", f"{gguf}.in_proj", 3 * size, size, bias=bias),
            **matrix("conv.out_proj", f"{gguf}.out_proj", size, size, bias=bias),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.rms_norm("operator_norm"),
            _mixer(loader, layer),
            loader.rms_norm("ffn_norm"),
            loader.gated_feed_forward(
                layer.feed_forward, *(f"feed_forward.{name}" for name in ("w1", "w3", "w2"))
            ),
        )


def _mixer(loader: WeightLoader, layer: LayerConfig) -> Mixer:
    mixer = layer.mixer
    if isinstance(mixer, AttentionConfig):
        return replace(
            loader.attention(mixer, out=_OUT),
            q_norm=loader.rms_norm("self_attn.q_layernorm"),
            k_norm=loader.rms_norm("self_attn.k_layernorm"),
        )
    assert isinstance(mixer, ShortConvConfig)
    return loader.short_conv(mixer)


def _layer_types(reader: ConfigReader) -> list[str]:
    """The kind of every layer; afterwards the number of KV heads is one number."""
    f = reader.fields
    if reader.tensors is None:
        types = f.get("layer_types")
        full = f.get("full_attn_idxs")
        if types is None:
            every = range(reader.num_layers)
            if full is not None and (
                not isinstance(full, list) or not all(type(i) is int and i in every for i in full)
            ):
                raise f.error("full_attn_idxs", f"a list of layers below {reader.num_layers}")
            return [_FULL if full is None or i in full else _CONV for i in every]
        return reader.layer_types((_FULL, _CONV))
    key = f.name("num_key_value_heads")
    heads = f.get(key)
    if not isinstance(heads, list | tuple) or len(heads) != reader.num_layers:
        raise f.error(key, f"a list of {reader.num_layers} numbers, 0 for a convolution")
    reader.fields = Fields(f.source, {**f.values, key: max(heads)}, f.names)
    return [_FULL if number else _CONV for number in heads]


def _feed_forward(f: Fields) -> FeedForwardConfig:
    """The feed-forward; its size is adjusted unless config.json says otherwise."""
    key = "block_ff_dim" if f.has("block_ff_dim") else "intermediate_size"
    size = f.integer(key, 1, MAX_INTERMEDIATE)
    if f.boolean("block_auto_adjust_ff_dim", True):
        size = int(2 * size / 3)
        multiplier = f.number("block_ffn_dim_multiplier", 0, 100, 1.0, open_low=True)
        multiple = f.integer("block_multiple_of", 1, MAX_HIDDEN, 256)
        size = -(-int(multiplier * size) // multiple) * multiple
    return FeedForwardConfig(size)
