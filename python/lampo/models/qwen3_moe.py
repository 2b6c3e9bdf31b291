# SPDX-License-Identifier: Apache-2.0
"""Qwen3's mixtures of experts: Qwen3's attention, and experts in all or some of the layers.

Source: Yang et al., "Qwen3 Technical Report" (2025).
"""

from __future__ import annotations

from dataclasses import replace

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import MAX_LAYERS, ConfigReader


class Qwen3MoE(Architecture):
    models = "Qwen3, mixtures of experts"
    features = ("experts", "q/k norms")
    model_type = "qwen3_moe"
    hf_class = "Qwen3MoeForCausalLM"
    hf_base_class = "Qwen3MoeModel"
    gguf_name = "qwen3moe"

    def config(self, reader: ConfigReader) -> ModelConfig:
        f = reader.fields
        in_gguf = reader.tensors is not None
        attention = reader.attention(
            default_kv_heads=4,
            qkv_bias=reader.bias("attention_bias", "blk.0.attn_q.bias"),
            out_bias=reader.bias("attention_bias", "blk.0.attn_output.bias"),
            qk_norm=True,
        )
        experts = reader.experts(
            size="moe_intermediate_size", normalized=f.boolean("norm_topk_prob", in_gguf)
        )
        step = f.integer("decoder_sparse_step", 1, MAX_LAYERS, 1)
        dense = f.get("mlp_only_layers") or []
        if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
            raise f.error("mlp_only_layers", "a list of layers")
        layers = list(reader.layers(attention, experts, reader.layer_windows()))
        for i, layer in enumerate(layers):
            if i in dense or (i + 1) % step:
                layers[i] = replace(layer, feed_forward=reader.feed_forward())
        return reader.model(tuple(layers))
