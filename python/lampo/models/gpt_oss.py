# SPDX-License-Identifier: Apache-2.0
"""gpt-oss: experts with a clamped gate, biases everywhere, a window in every second layer, and a
sink in the softmax of each head.

Source: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025).
"""

from __future__ import annotations

from dataclasses import replace

from lampo.models.architecture import Architecture, Tensors, vector
from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import ConfigReader

_FULL, _SLIDING = "full_attention", "sliding_attention"
_ENDS = "<|return|>", "<|call|>"
_GATE_FACTOR = 1.702  # of the kernels
_LIMIT = 7.0
_MAX_LIMIT = 1e6
_THETA = 1.5e5
_WINDOW = 128


class GptOss(Architecture):
    models = "gpt-oss"
    features = ("experts", "sinks", "window", "biases")
    model_type = "gpt_oss"
    hf_class = "GptOssForCausalLM"
    hf_base_class = "GptOssModel"
    gguf_name = "gpt-oss"
    experts_by_turns = True

    def config(self, reader: ConfigReader) -> ModelConfig:
        f = reader.fields
        in_gguf = reader.tensors is not None
        bias = in_gguf or f.boolean("attention_bias", True)
        attention = reader.attention(
            default_kv_heads=8,
            default_head_dim=64,
            default_theta=_THETA,
            qkv_bias=bias,
            out_bias=bias,
        )
        attention = replace(attention, sinks=True)
        if in_gguf and attention.rope is not None:
            # The model's; GGUF files have no field for it.
            attention = replace(attention, rope=replace(attention.rope, truncate=False))
        f.number("swiglu_alpha", _GATE_FACTOR, _GATE_FACTOR, _GATE_FACTOR)
        feed_forward = reader.experts(
            size="moe_intermediate_size" if in_gguf else "intermediate_size",
            bias=True,
            router_bias=True,
            swiglu_limit=f.number("swiglu_limit", 0, _MAX_LIMIT, _LIMIT, open_low=True),
        )
        window = reader.window(default=_WINDOW)
        layers = (
            LayerConfig(
                replace(attention, window=window if kind == _SLIDING else None), feed_forward
            )
            for kind in _layer_types(reader)
        )
        model = reader.model(tuple(layers))
        ends = dict.fromkeys((*model.eos_token_ids, *_ends_of_messages(reader)))
        return replace(model, eos_token_ids=tuple(ends))

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        norm, gguf = "post_attention_layernorm.weight", "post_attention_norm.weight"
        found = super().layer_tensors(config, layer)
        return {**found, **vector(norm, gguf, config.hidden_size)}


def _ends_of_messages(reader: ConfigReader) -> list[int]:
    """The tokens after which it is the caller's turn, in the vocabulary of a GGUF file, which names
    one of them."""
    tokens = reader.fields.values.get("tokenizer.ggml.tokens")
    if reader.tensors is None or not isinstance(tokens, list):
        return []
    return [tokens.index(token) for token in _ENDS if token in tokens]


def _layer_types(reader: ConfigReader) -> list[str]:
    """The kind of every layer: by a list, else by turns."""
    types = reader.fields.get("layer_types") if reader.tensors is None else None
    if types is None:
        return [_FULL if i % 2 else _SLIDING for i in range(reader.num_layers)]
    if (
        not isinstance(types, list)
        or len(types) != reader.num_layers
        or not all(t in (_FULL, _SLIDING) for t in types)
    ):
        expected = f"a list of {reader.num_layers}, each {_SLIDING} or {_FULL}"
        raise reader.fields.error("layer_types", expected)
    return types
