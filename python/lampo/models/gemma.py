# SPDX-License-Identifier: Apache-2.0
"""The block of Gemma 2 and 3: RMS norms before and after every part, GELU.

The embedding is multiplied by the root of hidden_size. Here the residual stream is divided by that
instead: norms before a part do not change, but for their epsilon, and norms after one have their
weights divided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lampo.models.architecture import (
    Architecture,
    Tensors,
    attention_tensors,
    gated_tensors,
    vector,
)
from lampo.models.config import AttentionConfig, LayerConfig, ModelConfig
from lampo.models.config_reader import MAX_HEAD_SCALE, ConfigReader

if TYPE_CHECKING:
    from lampo.models.layers import Block
    from lampo.models.projection import Norm
    from lampo.models.weight_loader import WeightLoader


class Gemma(Architecture):
    """What both have in common."""

    field_names: ClassVar = {"hidden_act": "hidden_activation"}

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        def norm(name: str, gguf: str) -> Tensors:
            return vector(f"{name}.weight", f"{gguf}.weight", config.hidden_size, less_one=True)

        return {
            **norm("input_layernorm", "attn_norm"),
            **attention_tensors(config.hidden_size, layer.attention, less_one=True),
            **norm("post_attention_layernorm", "post_attention_norm"),
            **norm("pre_feedforward_layernorm", "ffn_norm"),
            **gated_tensors(config.hidden_size, layer.feed_forward),
            **norm("post_feedforward_layernorm", "post_ffw_norm"),
        }

    def outer_tensors(self, config: ModelConfig) -> Tensors:
        name, gguf = (f"{part}.weight" for part in self.norm)
        return {
            **super().outer_tensors(config),
            **vector(name, gguf, config.hidden_size, less_one=True),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.norm_of_scaled("input_layernorm"),
            loader.attention(
                layer.attention,
                post_norm=loader.norm_to_scaled("post_attention_layernorm"),
            ),
            loader.norm_of_scaled("pre_feedforward_layernorm"),
            loader.gated_feed_forward(
                layer.feed_forward,
                gelu_tanh=True,
                post_norm=loader.norm_to_scaled("post_feedforward_layernorm"),
            ),
        )

    def final_norm(self, loader: WeightLoader) -> Norm:
        return loader.norm_of_scaled(self.norm[0])


def score_scale(reader: ConfigReader, attention: AttentionConfig, layers_of_27b: int) -> float:
    """The factor of the scores. GGUF files have no field for it: it is that of the sizes known."""
    per_head: float = attention.head_dim
    if reader.tensors is None:
        per_head = reader.fields.number(
            "query_pre_attn_scalar", 0, MAX_HEAD_SCALE, 256.0, open_low=True
        )
    elif reader.num_layers == layers_of_27b:
        per_head = reader.hidden_size / attention.num_qo_heads
    return float(per_head**-0.5)
