# SPDX-License-Identifier: Apache-2.0
"""Mistral: Llama's block, without biases, with a sliding window. llama.py reads its GGUF files.

Source: Jiang et al., "Mistral 7B" (2023).
"""

from __future__ import annotations

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader


class Mistral(Architecture):
    model_type = "mistral"
    hf_class = "MistralForCausalLM"
    hf_base_class = "MistralModel"
    models = "Mistral 7B, Small, Nemo"
    features = ("window",)

    def config(self, reader: ConfigReader) -> ModelConfig:
        attention = reader.attention(default_kv_heads=8, window=reader.window(default=4096))
        return reader.model(reader.layers(attention, reader.feed_forward()))
