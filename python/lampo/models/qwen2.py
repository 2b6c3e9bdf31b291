# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and Qwen2.5: Llama's block with biases on q, k and v, and a window on some layers.

Source: Yang et al., "Qwen2 Technical Report" (2024).
"""

from __future__ import annotations

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader


class Qwen2(Architecture):
    model_type = "qwen2"
    hf_class = "Qwen2ForCausalLM"
    hf_base_class = "Qwen2Model"
    gguf_name = "qwen2"
    models = "Qwen2, Qwen2.5"
    features = ("biases of q/k/v", "window")

    def config(self, reader: ConfigReader) -> ModelConfig:
        attention = reader.attention(default_kv_heads=32, qkv_bias=True)
        windows = reader.layer_windows()
        return reader.model(reader.layers(attention, reader.feed_forward(), windows))
