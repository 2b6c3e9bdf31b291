# SPDX-License-Identifier: Apache-2.0
"""Qwen3.5, 3.6 and 3.8, dense, text alone: three layers of linear attention by the gated delta rule
to one of attention, which has an output gate, norms on each head of q and k, and a rotary embedding
of a quarter of a head. Weights of norms are stored less one, but for those of linear attention.

Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks" (2024), and the Qwen Team's model cards.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from lampo.models.architecture import (
    Architecture,
    StoredTensor,
    Tensors,
    attention_tensors,
    gated_tensors,
    matrix,
    vector,
)
from lampo.models.config import (
    AttentionConfig,
    GatedDeltaConfig,
    LayerConfig,
    MixerConfig,
    ModelConfig,
)
from lampo.models.config_reader import MAX_HEADS, MAX_LAYERS, ConfigReader
from lampo.models.rope import RopeConfig, rope_from_hf
from lampo.weights.fields import Fields

if TYPE_CHECKING:
    from lampo.models.layers import Block, Mixer
    from lampo.models.weight_loader import WeightLoader

_FULL, _LINEAR = "full_attention", "linear_attention"
_PERIOD = 4  # layers from one of attention to the next
_MAX_DIM = 256  # of a head of linear attention, in the kernels
_OF_IMAGES = ("mrope_section", "mrope_interleaved")  # equal positions on three axes in text


class Qwen35(Architecture):
    models = "Qwen3.5, 3.6, 3.8, dense, text"
    features = ("linear attention", "gated attention", "q/k norms", "partial rope")
    model_type = "qwen3_5_text"
    hf_class = "Qwen3_5ForCausalLM"
    hf_base_class = "Qwen3_5TextModel"
    gguf_name = "qwen35"
    # The head that predicts the token after the next.
    unused = re.compile(rf"{Architecture.unused.pattern}|mtp\..*")

    def config(self, reader: ConfigReader) -> ModelConfig:
        f = reader.fields
        in_gguf = reader.tensors is not None
        name = reader.architecture
        if in_gguf:  # the head for the token after the next is counted among the blocks
            ahead = f.integer(f"{name}.nextn_predict_layers", 0, reader.num_layers - 1, 0)
            reader.num_layers -= ahead
            f.get(f"{name}.rope.dimension_sections")
        elif not f.boolean("attn_output_gate", True):
            raise f.error("attn_output_gate", "true")
        attention = reader.attention(
            default_kv_heads=4, default_head_dim=256, rotary=False, qk_norm=True
        )
        bias = reader.bias("attention_bias", f"blk.{_PERIOD - 1}.attn_q.bias")
        attention = replace(
            attention,
            rope=_rope(reader, attention.head_dim),
            gated=True,
            qkv_bias=bias,
            out_bias=bias,
        )
        mixers: dict[str, MixerConfig] = {_FULL: attention, _LINEAR: _gated_delta(reader)}
        key = f"{name}.full_attention_interval" if in_gguf else "full_attention_interval"
        if f.has("layer_types"):
            kinds = reader.layer_types((_FULL, _LINEAR))
        else:
            period = f.integer(key, 1, MAX_LAYERS, _PERIOD)
            kinds = [_LINEAR if (i + 1) % period else _FULL for i in range(reader.num_layers)]
        feed_forward = reader.feed_forward()
        return reader.model(tuple(LayerConfig(mixers[kind], feed_forward) for kind in kinds))

    def is_unused(self, name: str, config: ModelConfig) -> bool:
        block = re.match(r"blk\.(\d{1,4})\.", name)
        ahead = block is not None and int(block[1]) >= config.num_layers
        return ahead or super().is_unused(name, config)

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        size, mixer = config.hidden_size, layer.mixer
        found = {
            **vector("input_layernorm.weight", "attn_norm.weight", size, less_one=True),
            **vector(
                "post_attention_layernorm.weight",
                "post_attention_norm.weight",
                size,
                less_one=True,
            ),
            **gated_tensors(size, layer.feed_forward),
        }
        if isinstance(mixer, AttentionConfig):
            return found | attention_tensors(size, mixer, less_one=True)
        assert isinstance(mixer, GatedDeltaConfig)
        heads, values, conv = mixer.num_value_heads, mixer.value_size, mixer.conv_size
        taps = StoredTensor("ssm_conv1d.weight", (conv, mixer.width), is_conv=True)
        return found | {
            **matrix("linear_attn.in_proj_qkv", "attn_qkv", conv, size),
            **matrix("linear_attn.in_proj_z", "attn_gate", values, size),
            **matrix("linear_attn.in_proj_b", "ssm_beta", heads, size),
            **matrix("linear_attn.in_proj_a", "ssm_alpha", heads, size),
            "linear_attn.conv1d.weight": taps,
            "linear_attn.A_log": StoredTensor("ssm_a", (heads,), log_minus=True),
            **vector("linear_attn.dt_bias", "ssm_dt.bias", heads),
            **vector("linear_attn.norm.weight", "ssm_norm.weight", mixer.value_dim),
            **matrix("linear_attn.out_proj", "ssm_out", size, values),
        }

    def outer_tensors(self, config: ModelConfig) -> Tensors:
        name, gguf = (f"{part}.weight" for part in self.norm)
        return {
            **super().outer_tensors(config),
            **vector(name, gguf, config.hidden_size, less_one=True),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.rms_norm("input_layernorm"),
            _mixer(loader, layer),
            loader.rms_norm("post_attention_layernorm"),
            loader.gated_feed_forward(layer.feed_forward),
        )


def _mixer(loader: WeightLoader, layer: LayerConfig) -> Mixer:
    mixer = layer.mixer
    if isinstance(mixer, AttentionConfig):
        return loader.attention(mixer)
    assert isinstance(mixer, GatedDeltaConfig)
    return loader.gated_delta(mixer)


def _rope(reader: ConfigReader, head_dim: int) -> RopeConfig:
    if reader.tensors is not None:
        return reader.rope(head_dim)
    f = reader.fields
    values = dict(f.mapping("rope_parameters") or f.mapping("rope_scaling"))
    for key in ("rope_theta", "partial_rotary_factor"):
        if f.has(key):
            values.setdefault(key, f.get(key))
    for key in _OF_IMAGES:
        values.pop(key, None)
    share = Fields(f.source, values).number("partial_rotary_factor", 0, 1, 0.25, open_low=True)
    values.pop("partial_rotary_factor", None)
    if int(head_dim * share) < 2 or int(head_dim * share) % 2:
        raise f.error("rope_parameters", "a partial_rotary_factor that leaves pairs of channels")
    fields = Fields(f.source, {"rope_parameters": values})
    return rope_from_hf(fields, int(head_dim * share), reader.context, 1e7)


def _gated_delta(reader: ConfigReader) -> GatedDeltaConfig:
    f, in_gguf = reader.fields, reader.tensors is not None
    prefix = f"{reader.architecture}.ssm." if in_gguf else "linear_"
    names = {
        "num_key_heads": "group_count",
        "num_value_heads": "time_step_rank",
        "key_head_dim": "state_size",
        "conv_kernel_dim": "conv_kernel",
    }

    def read(name: str, low: int, high: int, default: int) -> int:
        return f.integer(prefix + (names[name] if in_gguf else name), low, high, default)

    key_heads = read("num_key_heads", 1, MAX_HEADS, 16)
    value_heads = read("num_value_heads", 1, MAX_HEADS, 32)
    if value_heads % key_heads:
        key = names["num_value_heads"] if in_gguf else "num_value_heads"
        raise f.error(prefix + key, f"a multiple of {key_heads} key heads")
    key_dim = read("key_head_dim", 1, _MAX_DIM, 128)
    if in_gguf:
        most = value_heads * _MAX_DIM
        inner = f.integer(f"{prefix}inner_size", value_heads, most, value_heads * key_dim)
        if inner % value_heads:
            raise f.error(f"{prefix}inner_size", f"a multiple of {value_heads} heads")
        value_dim = inner // value_heads
    else:
        value_dim = read("value_head_dim", 1, _MAX_DIM, 128)
    width = read("conv_kernel_dim", 2, 4, 4)
    return GatedDeltaConfig(key_heads, value_heads, key_dim, value_dim, width, tiled=in_gguf)
