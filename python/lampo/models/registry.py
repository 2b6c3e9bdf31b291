# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a model."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lampo.models.checkpoint import Checkpoint
from lampo.models.decoder import Decoder
from lampo.models.llama import load_llama

Loader = Callable[[Checkpoint, str, torch.dtype, int], Decoder]

LOADERS: dict[str, Loader] = {"llama": load_llama, "mistral": load_llama}
DTYPES = ("auto", "float32", "bfloat16")


def load_model(
    checkpoint: Checkpoint,
    dtype: str = "auto",
    max_model_len: int = 0,
    device: torch.device | None = None,
) -> Decoder:
    """Builds the model of a checkpoint.

    Args:
        checkpoint: an open checkpoint.
        dtype: "auto" keeps weights as stored (4- and 8-bit blocks packed) and computes in float32;
            "float32" computes on dequantized weights, exactly; "bfloat16" has weights and
            activations in bfloat16.
        max_model_len: positions that the rotary table covers; 0: the model's own context.
        device: for which it is built, the CPU if absent: a GPU computes in bfloat16. The weights
            are on the CPU; :meth:`Decoder.to` moves them.

    Raises:
        ValueError: an unknown dtype or architecture.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu and dtype == "float32":
        raise ValueError("dtype: a GPU computes in bfloat16; 'float32' is for device='cpu'")
    compute_dtype = torch.bfloat16 if on_gpu or dtype == "bfloat16" else torch.float32
    loader = LOADERS.get(checkpoint.config.architecture)
    if loader is None:
        raise ValueError(
            f"architecture: {checkpoint.config.architecture!r} is not supported, "
            f"only {', '.join(LOADERS)}"
        )
    max_model_len = max_model_len or checkpoint.config.max_position_embeddings
    return loader(checkpoint, dtype, compute_dtype, max_model_len)
