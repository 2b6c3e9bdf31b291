# SPDX-License-Identifier: Apache-2.0
"""SmolLM3: Llama's block, without rotary embedding in every fourth layer.

Source: Bakouch et al., "SmolLM3: smol, multilingual, long-context reasoner" (2025); Yang et al.,
"RoPE to NoPE and Back Again" (2025).
"""

from __future__ import annotations

from dataclasses import replace

from lampo.models.architecture import Architecture
from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import MAX_LAYERS, ConfigReader

_PERIOD = 4  # layers from one without rotary embedding to the next


class SmolLM3(Architecture):
    model_type = "smollm3"
    hf_class = "SmolLM3ForCausalLM"
    hf_base_class = "SmolLM3Model"
    gguf_name = "smollm3"
    models = "SmolLM3"
    features = ("layers without rope",)
    interleaved_in_gguf = True

    def config(self, reader: ConfigReader) -> ModelConfig:
        qkv_bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        out_bias = reader.bias("attention_bias", "blk.0.attn_output.bias")
        attention = reader.attention(
            default_kv_heads=4, default_theta=2e6, qkv_bias=qkv_bias, out_bias=out_bias
        )
        feed_forward = reader.feed_forward(bias=reader.bias("mlp_bias", "blk.0.ffn_down.bias"))
        kinds = {True: attention, False: replace(attention, rope=None)}
        layers = (LayerConfig(kinds[rotary], feed_forward) for rotary in _rotary_layers(reader))
        return reader.model(tuple(layers), tied=True)


def _rotary_layers(reader: ConfigReader) -> list[bool]:
    """Whether each layer rotates q and k. GGUF files have no field for it."""
    f = reader.fields
    if reader.tensors is not None:
        return [(i + 1) % _PERIOD != 0 for i in range(reader.num_layers)]
    named = f.get("no_rope_layers")  # 1 where there is rotary embedding, despite its name
    if named is None:
        period = f.integer("no_rope_layer_interval", 1, MAX_LAYERS, _PERIOD)
        return [(i + 1) % period != 0 for i in range(reader.num_layers)]
    if (
        not isinstance(named, list)
        or len(named) != reader.num_layers
        or not all(isinstance(value, int) and value in (0, 1) for value in named)
    ):
        raise f.error("no_rope_layers", f"a list of {reader.num_layers}, each 0 or 1")
    return [bool(value) for value in named]
