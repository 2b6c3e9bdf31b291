# SPDX-License-Identifier: Apache-2.0
"""Ministral 3: Llama's block, YaRN, and queries that grow with their position.

Source: Mistral AI, "Ministral 3" (2026).
"""

from __future__ import annotations

from dataclasses import replace

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader
from lampo.models.rope import rope_from_hf
from lampo.weights.fields import Fields

_BETA = "llama_4_scaling_beta"


class Ministral3(Architecture):
    model_type = "ministral3"
    hf_class = "Ministral3ForCausalLM"
    hf_base_class = "Ministral3Model"
    gguf_name = "mistral3"
    models = "Ministral 3, text"
    features = ("yarn", "growing queries")
    interleaved_in_gguf = True

    def config(self, reader: ConfigReader) -> ModelConfig:
        f = reader.fields
        attention = reader.attention(
            default_kv_heads=8, default_head_dim=128, rotary=False, window=reader.window()
        )
        if reader.tensors is not None:
            rope = reader.rope(attention.head_dim)
            beta = f.number(f"{reader.architecture}.attention.temperature_scale", 0, 100, 0.0)
        else:
            # Fields of its own among those of YaRN; the context is a copy of the model's.
            name = "rope_scaling" if f.mapping("rope_scaling") else "rope_parameters"
            values = f.mapping(name)
            yarn = {k: v for k, v in values.items() if k not in (_BETA, "max_position_embeddings")}
            fields = Fields(f.source, {name: yarn, "rope_theta": f.get("rope_theta")})
            rope = rope_from_hf(fields, attention.head_dim, reader.context, 1e6)
            beta = Fields(f"{f.source}: {name}", values).number(_BETA, 0, 100, 0.0)
        length = rope.original_max_position_embeddings or reader.context
        attention = replace(attention, rope=rope, growth=(beta, length) if beta else None)
        return reader.model(reader.layers(attention, reader.feed_forward()), default_eps=1e-5)

    def gguf_scales(self, config: ModelConfig) -> dict[str, float]:
        growth = config.layers[0].attention.growth
        beta = {} if growth is None else {"attention.temperature_scale": growth[0]}
        return super().gguf_scales(config) | beta
