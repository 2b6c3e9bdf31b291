# SPDX-License-Identifier: Apache-2.0
"""Qwen3: Llama's block with an RMS norm on each head of q and k.

Source: Yang et al., "Qwen3 Technical Report" (2025).
"""

from __future__ import annotations

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader


class Qwen3(Architecture):
    model_type = "qwen3"
    hf_class = "Qwen3ForCausalLM"
    hf_base_class = "Qwen3Model"
    gguf_name = "qwen3"
    models = "Qwen3, dense"
    features = ("q/k norms", "window")

    def config(self, reader: ConfigReader) -> ModelConfig:
        qkv_bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        out_bias = reader.bias("attention_bias", "blk.0.attn_output.bias")
        attention = reader.attention(
            default_kv_heads=32,
            default_head_dim=128,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            qk_norm=True,
        )
        windows = reader.layer_windows()
        return reader.model(reader.layers(attention, reader.feed_forward(), windows))
