# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a model."""

from __future__ import annotations

from collections.abc import Callable

from lampo.models.decoder import Decoder
from lampo.models.llama import load_llama
from lampo.weights import Checkpoint

Loader = Callable[[Checkpoint, str, int], Decoder]

LOADERS: dict[str, Loader] = {"llama": load_llama, "mistral": load_llama}
DTYPES = ("auto", "float32", "bfloat16")


def load_model(checkpoint: Checkpoint, dtype: str = "auto", max_model_len: int = 0) -> Decoder:
    """Builds the model of a checkpoint.

    Args:
        checkpoint: an open checkpoint.
        dtype: "auto" keeps weights as stored (4- and 8-bit blocks packed) and computes in float32;
            "float32" computes on dequantized weights, exactly; "bfloat16" has weights and
            activations in bfloat16.
        max_model_len: positions that the rotary table covers; 0: the model's own context.

    Raises:
        ValueError: an unknown dtype or architecture.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    loader = LOADERS.get(checkpoint.config.architecture)
    if loader is None:
        raise ValueError(
            f"architecture: {checkpoint.config.architecture!r} is not supported, "
            f"only {', '.join(LOADERS)}"
        )
    return loader(checkpoint, dtype, max_model_len or checkpoint.config.max_position_embeddings)
