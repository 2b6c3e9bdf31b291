# SPDX-License-Identifier: Apache-2.0
"""GPT-2: learned positions, layer norms, one fused q, k, v projection, a feed-forward with GELU.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from lampo.models.architecture import Architecture, Tensors, matrix, vector
from lampo.models.config import LayerConfig, ModelConfig
from lampo.models.config_reader import ConfigReader

if TYPE_CHECKING:
    from lampo.models.layers import Block
    from lampo.models.projection import Norm
    from lampo.models.weight_loader import WeightLoader


class GPT2(Architecture):
    model_type = "gpt2"
    hf_class = "GPT2LMHeadModel"
    hf_base_class = "GPT2Model"
    gguf_name = "gpt2"
    models = "GPT-2"
    features = ("learned positions", "layer norms")
    field_names: ClassVar = {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
    }
    embedding = ("transformer.wte", "token_embd")
    positions = ("transformer.wpe", "position_embd")
    layer = ("transformer.h.{}.", "blk.{}.")
    norm = ("transformer.ln_f", "output_norm")
    optional_prefix = "transformer."
    unused = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")  # the causal mask

    def config(self, reader: ConfigReader) -> ModelConfig:
        attention = reader.attention(rotary=False, qkv_bias=True, out_bias=True)
        feed_forward = reader.feed_forward(
            activations=("gelu_new", "gelu_pytorch_tanh"),
            default_size=4 * reader.hidden_size,
            bias=True,
        )
        layers = reader.layers(attention, feed_forward)
        return reader.model(layers, norm_eps="layer_norm_epsilon", tied=True)

    def outer_tensors(self, config: ModelConfig) -> Tensors:
        size = config.hidden_size
        return {
            **super().outer_tensors(config),
            **matrix(*self.positions, config.max_position_embeddings, size),
            **vector("transformer.ln_f.bias", "output_norm.bias", size),
        }

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        size, inner = config.hidden_size, layer.feed_forward.size

        def linear(name: str, gguf: str, rows: int, columns: int) -> Tensors:
            return matrix(name, gguf, rows, columns, bias=True, transposed=True)

        return {
            **vector("ln_1.weight", "attn_norm.weight", size),
            **vector("ln_1.bias", "attn_norm.bias", size),
            **linear("attn.c_attn", "attn_qkv", 3 * size, size),
            **linear("attn.c_proj", "attn_output", size, size),
            **vector("ln_2.weight", "ffn_norm.weight", size),
            **vector("ln_2.bias", "ffn_norm.bias", size),
            **linear("mlp.c_fc", "ffn_up", inner, size),
            **linear("mlp.c_proj", "ffn_down", size, inner),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        return loader.block(
            loader.layer_norm("ln_1"),
            loader.attention(layer.attention, ["attn.c_attn"], "attn.c_proj"),
            loader.layer_norm("ln_2"),
            loader.feed_forward("mlp.c_fc", "mlp.c_proj", bias=True, tanh_approximation=True),
        )

    def final_norm(self, loader: WeightLoader) -> Norm:
        return loader.layer_norm("transformer.ln_f")
