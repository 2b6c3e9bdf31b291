# SPDX-License-Identifier: Apache-2.0
"""Llama, SmolLM2, TinyLlama, and Mistral without a window: names and shapes of the weights."""

from __future__ import annotations

import torch

from lampo.models.checkpoint import Checkpoint
from lampo.models.decoder import Block, Decoder
from lampo.models.projection import ActivationBits, Norm, Projection, WeightLoader

# Packed weights: the mean divergence of SmolLM2 (Q4_1) from the exact model is 1.3e-3. With 8 bits
# everywhere it was 3.8e-3: the LM head made 1.4e-3, q, k and v 1.0e-3, gate and up 0.9e-3. With 16
# bits in place of 9 it is 0.9e-3, for half as much work again.
# BF16 weights: x is split into two BF16. One is enough before gate and up, half of all products:
# 3e-5, where one BF16 everywhere made 1.0e-4.
SENSITIVE = ActivationBits(packed=9)
GATE_UP = ActivationBits(packed=9, dense=8)

WEIGHT_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def load_llama(
    checkpoint: Checkpoint, dtype: str, compute_dtype: torch.dtype, max_model_len: int
) -> Decoder:
    """Reads and packs the weights, layer by layer: what has been copied leaves the mapping."""
    config = checkpoint.config
    loader = WeightLoader(checkpoint, WEIGHT_DTYPES[dtype])

    def norm(name: str) -> Norm:
        weight = checkpoint.load(f"{name}.weight")
        assert isinstance(weight, torch.Tensor)
        return Norm(weight.float().clone(), config.rms_norm_eps)

    def block(layer: str) -> Block:
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        qkv = [f"{attention}.{part}_proj" for part in "qkv"]
        attention_bias, mlp_bias = config.attention_bias, config.mlp_bias
        return Block(
            input_norm=norm(f"{layer}.input_layernorm"),
            qkv=loader.projection(qkv, bias=attention_bias, activation_bits=SENSITIVE),
            attention_out=loader.projection([f"{attention}.o_proj"], bias=attention_bias),
            post_attention_norm=norm(f"{layer}.post_attention_layernorm"),
            gate_up=loader.gated_projection(
                f"{mlp}.gate_proj", f"{mlp}.up_proj", bias=mlp_bias, activation_bits=GATE_UP
            ),
            down=loader.projection([f"{mlp}.down_proj"], bias=mlp_bias),
        )

    # The largest first: while it is copied, nothing else takes memory yet.
    tied, name = config.tie_word_embeddings, "model.embed_tokens"
    embed_tokens = loader.weights([name])[0] if tied else loader.table(name)
    blocks = [block(f"model.layers.{i}") for i in range(config.num_layers)]
    if tied:
        lm_head = Projection([embed_tokens], None, SENSITIVE)
    else:
        lm_head = loader.projection(["lm_head"], activation_bits=SENSITIVE)
    nbytes = lm_head.nbytes + (0 if tied else embed_tokens.nbytes)
    for b in blocks:
        nbytes += sum(p.nbytes for p in (b.qkv, b.attention_out, b.gate_up, b.down))
        nbytes += b.input_norm.weight.nbytes + b.post_attention_norm.weight.nbytes
    return Decoder(
        config=config,
        embed_tokens=embed_tokens,
        blocks=blocks,
        norm=norm("model.norm"),
        lm_head=lm_head,
        cos_sin=config.rope.cos_sin_table(max_model_len),
        dtype=compute_dtype,
        nbytes=nbytes,
    )
