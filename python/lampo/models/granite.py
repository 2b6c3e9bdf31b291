# SPDX-License-Identifier: Apache-2.0
"""Granite, dense: Llama's block with factors of the embedding, scores, residuals and logits.

Source: IBM Granite Team, "Granite 3.0 Language Models" (2024).
"""

from __future__ import annotations

from dataclasses import replace

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader

_MAX_FACTOR = 1e6
# Fields of config.json, and their names in a GGUF file.
_FACTORS = {
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


class Granite(Architecture):
    model_type = "granite"
    hf_class = "GraniteForCausalLM"
    hf_base_class = "GraniteModel"
    gguf_name = "granite"
    models = "Granite 3, dense"
    features = ("multipliers",)
    interleaved_in_gguf = True

    def config(self, reader: ConfigReader) -> ModelConfig:
        qkv_bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        out_bias = reader.bias("attention_bias", "blk.0.attn_output.bias")
        attention = reader.attention(qkv_bias=qkv_bias, out_bias=out_bias)
        if reader.tensors is not None:
            # The converter's switch for models without rotary embedding.
            rotary = reader.fields.boolean(f"{reader.architecture}.rope.scaling.finetuned", True)
            attention = attention if rotary else replace(attention, rope=None)
            # llama.cpp takes an absent scale as the usual one, config.json's default is 1.
            scale = _factor(reader, "attention_multiplier", attention.scale)
        else:
            scale = _factor(reader, "attention_multiplier", 1.0)
        feed_forward = reader.feed_forward(bias=reader.bias("mlp_bias", "blk.0.ffn_down.bias"))
        return reader.model(
            reader.layers(replace(attention, scale=scale), feed_forward),
            embedding_scale=_factor(reader, "embedding_multiplier", 1.0),
            residual_scale=_factor(reader, "residual_multiplier", 1.0),
            logit_scale=1 / _factor(reader, "logits_scaling", 1.0),
        )

    def gguf_scales(self, config: ModelConfig) -> dict[str, float]:
        return {
            "embedding_scale": config.embedding_scale,
            "attention.scale": config.layers[0].attention.scale,
            "residual_scale": config.residual_scale,
            "logit_scale": 1 / config.logit_scale,
        }


def _factor(reader: ConfigReader, field: str, default: float) -> float:
    if reader.tensors is not None:
        field = f"{reader.architecture}.{_FACTORS[field]}"
    return reader.fields.number(field, 0, _MAX_FACTOR, default, open_low=True)
