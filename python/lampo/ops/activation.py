# SPDX-License-Identifier: Apache-2.0
"""Activations, gated and plain."""

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
