# SPDX-License-Identifier: Apache-2.0
"""Activations, gated and plain; elementwise scaling."""

from __future__ import annotations

import torch

from lampo import _C
from lampo.ops._arguments import tensor
from lampo.ops._registry import register

_silu_mul = register("silu_mul(Tensor gate_up, Tensor(a!) out) -> ()", _C.silu_mul)
_gelu_mul = register(
    "gelu_mul(Tensor gate_up, Tensor(a!) out, bool tanh_approximation) -> ()", _C.gelu_mul
)
_gelu = register("gelu(Tensor x, Tensor(a!) out, bool tanh_approximation) -> ()", _C.gelu)
_scale = register("scale(Tensor x, Tensor(a!) out, float factor, float soft_cap) -> ()", _C.scale)
_scale_by_position = register(
    "scale_by_position(Tensor x, Tensor positions, Tensor(a!) out, float beta, int length) -> ()",
    _C.scale_by_position,
)


def _half_width(gate_up: torch.Tensor) -> torch.Tensor:
    num_tokens, columns = tensor("gate_up", gate_up, 2).shape
    return gate_up.new_empty(num_tokens, columns // 2)


def silu_mul(gate_up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """SwiGLU's elementwise part: ``silu(gate) * up`` with ``silu(x) = x / (1 + exp(-x))``.

    Args:
        gate_up: [num_tokens, 2 * size] float32 or bfloat16: gate, then up.
        out: [num_tokens, size] as ``gate_up``, written.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name.

    Source: Shazeer, "GLU Variants Improve Transformer" (2020).
    """
    if out is None:
        out = _half_width(gate_up)
    _silu_mul(gate_up, out)
    return out


def gelu_mul(
    gate_up: torch.Tensor, *, tanh_approximation: bool = False, out: torch.Tensor | None = None
) -> torch.Tensor:
    """GeGLU's elementwise part: ``gelu(gate) * up``; arguments as in :func:`silu_mul`.

    ``tanh_approximation`` selects ``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`` in place of
    ``x/2 (1 + erf(x / sqrt(2)))``.
    """
    if out is None:
        out = _half_width(gate_up)
    _gelu_mul(gate_up, out, tanh_approximation)
    return out


def gelu(
    x: torch.Tensor, *, tanh_approximation: bool = False, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Gaussian error linear unit of x: [num_tokens, size] float32 or bfloat16, elementwise.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
    """
    if out is None:
        out = torch.empty_like(tensor("x", x, 2))
    _gelu(x, out, tanh_approximation)
    return out


def scale(
    x: torch.Tensor,
    factor: float,
    *,
    soft_cap: float | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``factor * x``, with a soft cap c ``c * tanh(factor * x / c)``, elementwise.

    Args:
        x: [num_tokens, size] float32 or bfloat16.
        factor: finite.
        soft_cap: bound of the magnitudes, above 0; None: none.
        out: as x, which it may be; written.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.

    Source of the cap: Bello et al., "Neural Combinatorial Optimization with Reinforcement
    Learning" (2016).
    """
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap: expected a number above 0, got {soft_cap}")
    if out is None:
        out = torch.empty_like(tensor("x", x, 2))
    _scale(x, out, factor, soft_cap or 0.0)
    return out


def scale_by_position(
    x: torch.Tensor,
    positions: torch.Tensor,
    *,
    beta: float,
    length: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``(1 + beta ln(1 + floor(p / length))) * x`` for a token at position p: of queries, against
    the flattening of the softmax over long contexts.

    Args:
        x: [num_tokens, size] float32 or bfloat16.
        positions: [num_tokens] int64.
        beta: from 0.
        length: of the parts of a context that have one factor.
        out: as x, which it may be; written.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.

    Source: Meta's Llama 4; Nakanishi, "Scalable-Softmax Is Superior for Attention" (2025).
    """
    if out is None:
        out = torch.empty_like(tensor("x", x, 2))
    _scale_by_position(x, positions, out, beta, length)
    return out
