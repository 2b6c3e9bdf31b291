# SPDX-License-Identifier: Apache-2.0
"""Mistral: Llama's block, without biases, with a sliding window. llama.py reads its GGUF files.

Source: Jiang et al., "Mistral 7B" (2023).
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


class Mistral(Architecture):
    model_type = "mistral"
    hf_class = "MistralForCausalLM"
    hf_base_class = "MistralModel"

    def config(self, reader: ConfigReader) -> ModelConfig:
        attention = reader.attention(default_kv_heads=8, window=reader.window(default=4096))
        return reader.model(reader.layers(attention, reader.feed_forward()))

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
