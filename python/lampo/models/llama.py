# SPDX-License-Identifier: Apache-2.0
"""Llama, SmolLM2, TinyLlama: RMS norms, rotary grouped-query attention, a gated feed-forward.

Source: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023).
"""

from __future__ import annotations

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader


class Llama(Architecture):
    model_type = "llama"
    hf_class = "LlamaForCausalLM"
    hf_base_class = "LlamaModel"
    gguf_name = "llama"
    models = "Llama 2 to 3.3, SmolLM2, TinyLlama"
    interleaved_in_gguf = True

    def config(self, reader: ConfigReader) -> ModelConfig:
        qkv_bias = reader.bias("attention_bias", "blk.0.attn_q.bias")
        out_bias = reader.bias("attention_bias", "blk.0.attn_output.bias")
        # The architecture of Mistral's GGUF files, which have a window, is "llama".
        window = None if reader.tensors is None else reader.window()
        attention = reader.attention(window=window, qkv_bias=qkv_bias, out_bias=out_bias)
        if reader.tensors is not None and reader.fields.get("num_experts"):  # Mixtral's
            feed_forward = reader.experts(size="intermediate_size")
        else:
            feed_forward = reader.feed_forward(bias=reader.bias("mlp_bias", "blk.0.ffn_down.bias"))
        return reader.model(reader.layers(attention, feed_forward))
