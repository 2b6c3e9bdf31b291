# SPDX-License-Identifier: Apache-2.0
"""OLMo 2 and 3: RMS norms after every part and none before, norms of q and k over all heads. OLMo 3
has a window on three layers of four, which keep the plain rotary embedding.

Source: OLMo Team, "2 OLMo 2 Furious" (2024); "Olmo 3" (2025).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from lampo.models.architecture import (
    Architecture,
    Tensors,
    attention_tensors,
    gated_tensors,
    vector,
)
from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import ConfigReader
from lampo.models.rope import RopeConfig, rope_from_hf
from lampo.weights.fields import Fields

if TYPE_CHECKING:
    from lampo.models.layers import Block
    from lampo.models.weight_loader import WeightLoader

_PERIOD = 4  # layers of OLMo 3 from one of full attention to the next
_THETA = 5e5


class Olmo2(Architecture):
    model_type = "olmo2"
    hf_class = "Olmo2ForCausalLM"
    hf_base_class = "Olmo2Model"
    gguf_name: ClassVar[str | None] = "olmo2"
    models = "OLMo 2"
    features: ClassVar[tuple[str, ...]] = ("norms after parts", "q/k norms over heads")

    def config(self, reader: ConfigReader) -> ModelConfig:
        bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        attention = reader.attention(qkv_bias=bias, out_bias=bias, joint_qk_norm=True)
        feed_forward = reader.feed_forward()
        layers = reader.layers(attention, feed_forward)
        # The architecture of OLMo 3's GGUF files, which have a window, is "olmo2".
        if reader.tensors is not None and (window := reader.window()) is not None:
            assert attention.rope is not None
            plain = RopeConfig(theta=attention.rope.theta, rotary_dim=attention.rope.rotary_dim)
            sliding = replace(attention, rope=plain, window=window)
            layers = tuple(
                LayerConfig(sliding if is_sliding else attention, feed_forward)
                for is_sliding in reader.sliding_layers(_PERIOD)
            )
        return reader.model(layers, default_eps=1e-5)

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        size = config.hidden_size
        return {
            **attention_tensors(size, layer.attention),
            **vector("post_attention_layernorm.weight", "post_attention_norm.weight", size),
            **gated_tensors(size, layer.feed_forward),
            **vector("post_feedforward_layernorm.weight", "post_ffw_norm.weight", size),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.no_norm(),
            loader.attention(
                layer.attention, post_norm=loader.rms_norm("post_attention_layernorm")
            ),
            loader.no_norm(),
            loader.gated_feed_forward(
                layer.feed_forward, post_norm=loader.rms_norm("post_feedforward_layernorm")
            ),
        )


class Olmo3(Olmo2):
    model_type = "olmo3"
    hf_class = "Olmo3ForCausalLM"
    hf_base_class = "Olmo3Model"
    gguf_name = None
    models = "OLMo 3"
    features = (*Olmo2.features, "window", "yarn")

    def config(self, reader: ConfigReader) -> ModelConfig:
        bias = reader.fields.boolean("attention_bias", False)
        attention = reader.attention(rotary=False, qkv_bias=bias, out_bias=bias, joint_qk_norm=True)
        window = reader.window(default=4096)
        kinds = {
            True: replace(
                attention,
                rope=_rope(reader, "sliding_attention", attention.head_dim),
                window=window,
            ),
            False: replace(attention, rope=_rope(reader, "full_attention", attention.head_dim)),
        }
        feed_forward = reader.feed_forward()
        layers = tuple(
            LayerConfig(kinds[sliding], feed_forward) for sliding in reader.sliding_layers(_PERIOD)
        )
        return reader.model(layers, default_eps=1e-5)


def _rope(reader: ConfigReader, kind: str, head_dim: int) -> RopeConfig:
    """The rotary embedding of the layers of one kind; scaling concerns those of full attention."""
    f = reader.fields
    parameters = f.mapping("rope_parameters")
    scaling = f.mapping("rope_scaling")
    values: dict[str, Any] = {"rope_theta": f.get("rope_theta")}
    if kind in parameters:
        values["rope_parameters"] = parameters[kind]
    elif kind == "full_attention":
        values |= {"rope_parameters": scaling or parameters}
    fields = Fields(f.source, values)
    return rope_from_hf(fields, head_dim, reader.context, _THETA)
