# SPDX-License-Identifier: Apache-2.0
"""Weights from files: safetensors and GGUF, memory-mapped, validated before anything is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lampo.weights.hub import DEFAULT_MODEL, ModelNotFoundError, pull, resolve_model

if TYPE_CHECKING:
    from lampo.weights.checkpoint import Checkpoint, load_checkpoint
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

# Resolved at first use: finding and fetching a model does without torch.
_LAZY = {
    "Checkpoint": "lampo.weights.checkpoint",
    "QuantizedTensor": "lampo.weights.quantize",
    "load_checkpoint": "lampo.weights.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lampo.weights' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
