# SPDX-License-Identifier: Apache-2.0
"""Weights from files: safetensors and GGUF, memory-mapped, validated before anything is used."""

from __future__ import annotations

from lampo.weights.checkpoint import Checkpoint, load_checkpoint
from lampo.weights.hub import DEFAULT_MODEL, ModelNotFoundError, pull, resolve_model
from lampo.weights.quantize import QuantizedTensor

__all__ = [
    "DEFAULT_MODEL",
    "Checkpoint",
    "ModelNotFoundError",
    "QuantizedTensor",
    "load_checkpoint",
    "pull",
    "resolve_model",
]
