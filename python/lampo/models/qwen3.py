# SPDX-License-Identifier: Apache-2.0
"""Qwen3: Llama's block with an RMS norm on each head of q and k.

Source: Yang et al., "Qwen3 Technical Report" (2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lampo.models.architecture import (
    Architecture,
    Tensors,
    attention_tensors,
    gated_tensors,
    vector,
)
from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import ConfigReader

if TYPE_CHECKING:
    from lampo.models.layers import Block
    from lampo.models.weight_loader import WeightLoader


class Qwen3(Architecture):
    model_type = "qwen3"
    hf_class = "Qwen3ForCausalLM"
    hf_base_class = "Qwen3Model"
    gguf_name = "qwen3"

    def config(self, reader: ConfigReader) -> ModelConfig:
        qkv_bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        out_bias = reader.bias("attention_bias", "blk.0.attn_output.bias")
        attention = reader.attention(
            default_kv_heads=32, default_head_dim=128, qkv_bias=qkv_bias, out_bias=out_bias
        )
        windows = reader.layer_windows()
        return reader.model(reader.layers(attention, reader.feed_forward(), windows))

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        size = config.hidden_size
        return {
            **vector("input_layernorm.weight", "attn_norm.weight", size),
            **attention_tensors(size, layer.attention),
            **vector("self_attn.q_norm.weight", "attn_q_norm.weight", layer.attention.head_dim),
            **vector("self_attn.k_norm.weight", "attn_k_norm.weight", layer.attention.head_dim),
            **vector("post_attention_layernorm.weight", "ffn_norm.weight", size),
            **gated_tensors(size, layer.feed_forward),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.rms_norm("input_layernorm"),
            loader.attention(layer.attention, q_norm="self_attn.q_norm", k_norm="self_attn.k_norm"),
            loader.rms_norm("post_attention_layernorm"),
            loader.gated_feed_forward(layer.feed_forward),
        )
