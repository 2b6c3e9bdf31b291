# SPDX-License-Identifier: Apache-2.0
"""Gemma 2: Gemma's block, soft caps on scores and logits, and a window in every second layer.

Source: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size" (2024).
"""

from __future__ import annotations

from dataclasses import replace

from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import ConfigReader
from lampo.models.gemma import Gemma, score_scale

_PERIOD = 2  # layers from one of full attention to the next
_LAYERS_OF_27B = 46
_MAX_CAP = 1e6


class Gemma2(Gemma):
    model_type = "gemma2"
    hf_class = "Gemma2ForCausalLM"
    hf_base_class = "Gemma2Model"
    gguf_name = "gemma2"
    models = "Gemma 2"
    features = ("sandwich norms", "window", "soft caps")

    def config(self, reader: ConfigReader) -> ModelConfig:
        bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        attention = reader.attention(
            default_kv_heads=4, default_head_dim=256, qkv_bias=bias, out_bias=bias
        )
        attention = replace(
            attention,
            scale=score_scale(reader, attention, _LAYERS_OF_27B),
            soft_cap=_soft_cap(reader, "attn_logit_softcapping", 50.0),
        )
        window = reader.window(default=4096)
        feed_forward = reader.feed_forward(activations=("gelu_pytorch_tanh",))
        layers = tuple(
            LayerConfig(replace(attention, window=window if sliding else None), feed_forward)
            for sliding in reader.sliding_layers(_PERIOD)
        )
        logit_soft_cap = _soft_cap(reader, "final_logit_softcapping", 30.0)
        return reader.model(layers, tied=True, logit_soft_cap=logit_soft_cap)

    def gguf_scales(self, config: ModelConfig) -> dict[str, float]:
        scores, logits = config.layers[0].attention.soft_cap, config.logit_soft_cap
        if scores is None or logits is None:  # absent fields mean the usual caps
            raise ValueError("quantize: a GGUF file cannot express a Gemma 2 without soft caps")
        caps = {"attn_logit_softcapping": scores, "final_logit_softcapping": logits}
        return super().gguf_scales(config) | caps


def _soft_cap(reader: ConfigReader, field: str, default: float) -> float | None:
    """A cap, by a field of the same name in both kinds of files; null means none."""
    f = reader.fields
    if reader.tensors is not None:
        field = f"{reader.architecture}.{field}"
    if field in f.values and not f.has(field):
        return None
    return f.number(field, 0, _MAX_CAP, default, open_low=True)
