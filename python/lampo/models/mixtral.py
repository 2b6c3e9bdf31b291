# SPDX-License-Identifier: Apache-2.0
"""Mixtral: Mistral's block with experts. Its GGUF files are of the llama architecture.

Source: Jiang et al., "Mixtral of Experts" (2024).
"""

from __future__ import annotations

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader


class Mixtral(Architecture):
    models = "Mixtral"
    features = ("experts",)
    model_type = "mixtral"
    hf_class = "MixtralForCausalLM"
    hf_base_class = "MixtralModel"

    def config(self, reader: ConfigReader) -> ModelConfig:
        attention = reader.attention(default_kv_heads=8, default_theta=1e6, window=reader.window())
        return reader.model(reader.layers(attention, reader.experts(size="intermediate_size")))
