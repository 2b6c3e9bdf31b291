# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and Qwen2.5: Llama's block with biases on q, k and v, and a window on some layers.

Source: Yang et al., "Qwen2 Technical Report" (2024).
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


class Qwen2(Architecture):
    model_type = "qwen2"
    hf_class = "Qwen2ForCausalLM"
    hf_base_class = "Qwen2Model"
    gguf_name = "qwen2"

    def config(self, reader: ConfigReader) -> ModelConfig:
        attention = reader.attention(default_kv_heads=32, qkv_bias=True)
        windows = reader.layer_windows()
        return reader.model(reader.layers(attention, reader.feed_forward(), windows))

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        size = config.hidden_size
        return {
            **vector("input_layernorm.weight", "attn_norm.weight", size),
            **attention_tensors(size, layer.attention),
            **vector("post_attention_layernorm.weight", "ffn_norm.weight", size),
            **gated_tensors(size, layer.feed_forward),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.rms_norm("input_layernorm"),
            loader.attention(layer.attention),
            loader.rms_norm("post_attention_layernorm"),
            loader.gated_feed_forward(layer.feed_forward),
        )
