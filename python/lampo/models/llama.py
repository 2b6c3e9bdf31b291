# SPDX-License-Identifier: Apache-2.0
"""Llama, SmolLM2, TinyLlama: RMS norms, rotary grouped-query attention, a gated feed-forward.

Source: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023).
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


class Llama(Architecture):
    model_type = "llama"
    hf_class = "LlamaForCausalLM"
    hf_base_class = "LlamaModel"
    gguf_name = "llama"
    interleaved_in_gguf = True

    def config(self, reader: ConfigReader) -> ModelConfig:
        qkv_bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        out_bias = reader.bias("attention_bias", "blk.0.attn_output.bias")
        # The architecture of Mistral's GGUF files, which have a window, is "llama".
        window = None if reader.tensors is None else reader.window()
        attention = reader.attention(window=window, qkv_bias=qkv_bias, out_bias=out_bias)
        feed_forward = reader.feed_forward(bias=reader.bias("mlp_bias", "blk.0.ffn_down.bias"))
        return reader.model(reader.layers(attention, feed_forward))

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
