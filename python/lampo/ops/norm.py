# SPDX-License-Identifier: Apache-2.0
"""Normalisation, with the residual add fused."""

from __future__ import annotations

import torch

from lampo import _C
from lampo.ops._arguments import tensor
from lampo.ops._registry import register

_rms_norm = register(
    "rms_norm(Tensor x, Tensor weight, Tensor(a!)? residual, Tensor(b!) out, float eps) -> ()",
    _C.rms_norm,
)
_layer_norm = register(
    "layer_norm(Tensor x, Tensor weight, Tensor? bias, Tensor(a!)? residual, Tensor(b!) out, "
    "float eps) -> ()",
    _C.layer_norm,
)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Root-mean-square norm: ``x * weight / sqrt(mean(x^2) + eps)``, computed in float32.

    Args:
        x: [num_tokens, hidden_size] float32 or bfloat16.
        weight: [hidden_size] float32 or as ``x``.
        eps: added to the mean square, in [0, 1].
        residual: [num_tokens, hidden_size] as ``x``. If given, ``residual += x`` happens first, in
            place, and the sum is what is normed.
        out: [num_tokens, hidden_size] as ``x``, written; may be ``x`` itself.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
    """
    if out is None:
        out = torch.empty_like(tensor("x", x, 2))
    _rms_norm(x, weight, residual, out, eps)
    return out


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Layer norm: ``(x - mean) / sqrt(var + eps) * weight + bias``, computed in float32.

    Args:
        x: [num_tokens, hidden_size] float32 or bfloat16.
        weight, bias: [hidden_size] float32 or as ``x``; both of one dtype.
        eps, residual, out: as in :func:`rms_norm`.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name.

    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).
    """
    if out is None:
        out = torch.empty_like(tensor("x", x, 2))
    _layer_norm(x, weight, bias, residual, out, eps)
    return out
