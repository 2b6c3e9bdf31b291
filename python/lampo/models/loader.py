# SPDX-License-Identifier: Apache-2.0
"""Construction of a model from a checkpoint."""

from __future__ import annotations

import os
from functools import partial

import torch

from lampo.models.checkpoint import Checkpoint
from lampo.models.decoder import Decoder, Embedding
from lampo.models.projection import SENSITIVE, Projection
from lampo.models.weight_loader import WeightLoader

_WEIGHT_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}

# GNU OpenMP waits forever for threads that a fork has left behind. With one thread torch asks for
# none, as in the workers of its own data loader.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def load_model(
    checkpoint: Checkpoint,
    dtype: str = "auto",
    max_model_len: int = 0,
    device: torch.device | None = None,
    quantize: str | None = None,
    activation_bits: int | None = None,
) -> Decoder:
    """Builds the model of a checkpoint, block by block.

    Args:
        checkpoint: an open checkpoint.
        dtype: "auto" keeps weights as stored (blocks packed) and computes in float32;
            "float32" computes on dequantized weights, exactly; "bfloat16" has weights and
            activations in bfloat16.
        max_model_len: positions that the rotary tables can cover; 0: the model's own context.
        device: target of the model, the CPU if absent; a GPU computes in bfloat16. The weights are
            on the CPU; :meth:`Decoder.to` moves them.
        quantize: quantize dense matrices to this format at load, the LM head and the embedding to
            q6_k if that has more bits, as llama.cpp's mixtures do; None: keep them.
        activation_bits: of all inputs of packed weights; None: as each layer needs.

    Raises:
        ValueError: an unknown dtype, a head_dim that the device's kernels do not have, or a file
            that has been cut short since it was opened.
    """
    if dtype not in _WEIGHT_DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(_WEIGHT_DTYPES)}, got {dtype!r}")
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu and dtype == "float32":
        raise ValueError("dtype: a GPU computes in bfloat16; 'float32' is for device='cpu'")
    config, architecture = checkpoint.config, checkpoint.architecture
    for attention in config.attentions:
        if on_gpu and attention.head_dim % 8:
            raise ValueError(
                f"device: a GPU needs a head_dim that is a multiple of 8, and this model's is "
                f"{attention.head_dim}"
            )
    if on_gpu and any(layer.feed_forward.experts is not None for layer in config.layers):
        raise ValueError("device: models with experts run on device='cpu' alone so far")
    max_model_len = max_model_len or config.max_position_embeddings
    if quantize is not None and (on_gpu or dtype != "auto"):
        raise ValueError("quantize: is for device='cpu' and dtype='auto'")
    loader = WeightLoader(
        checkpoint,
        _WEIGHT_DTYPES[dtype],
        # The residual stream is divided by residual_scale: mixers and feed-forwards then add to it
        # as they are, and norms of it change by their epsilon alone.
        config.norm_eps / config.residual_scale**2,
        max_model_len,
        quantize=quantize,
        activation_bits=activation_bits,
    )
    outer = loader if quantize in (None, "q6_k", "q8_0") else loader.quantizing("q6_k")

    # The largest tensor first: no other copy takes memory yet.
    name = architecture.embedding[0]
    if config.tie_word_embeddings:
        (tokens,) = outer.weights([name])
        lm_head = Projection([tokens], None, loader.activation_bits(SENSITIVE))
    else:
        tokens = outer.table(name)
    positions = None
    if architecture.positions is not None:
        positions = loader.quantizing(None).table(architecture.positions[0])
    embedding = Embedding(tokens, positions, config.embedding_scale / config.residual_scale)
    blocks = [
        architecture.block(loader.under(architecture.layer[0].format(i)), layer)
        for i, layer in enumerate(config.layers)
    ]
    # The input of the first and the last `down` has the largest channels.
    for block in (blocks[0], blocks[-1]):
        block.feed_forward.down.activation_bits = loader.activation_bits(SENSITIVE)
    if not config.tie_word_embeddings:
        lm_head = outer.projection([architecture.head[0]], activation_bits=SENSITIVE)
    return Decoder(
        config,
        embedding,
        blocks,
        architecture.final_norm(loader),
        lm_head,
        dtype=torch.bfloat16 if on_gpu or dtype == "bfloat16" else torch.float32,
        max_model_len=max_model_len,
        device=torch.device("cpu"),
    )
