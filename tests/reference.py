# SPDX-License-Identifier: Apache-2.0
"""Every op in plain PyTorch, in float64, written to be read. The tests' oracle."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    return x * weight / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    centred = x - x.mean(-1, keepdim=True)
    out = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps) * weight
    return out if bias is None else out + bias.double()


def silu(x: torch.Tensor) -> torch.Tensor:
    return x.double() / (1 + torch.exp(-x.double()))


def gelu(x: torch.Tensor, tanh_approximation: bool) -> torch.Tensor:
    x = x.double()
    if tanh_approximation:
        return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return x / 2 * (1 + torch.erf(x / 2**0.5))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = x.double() @ weight.double().T
    return out if bias is None else out + bias.double()


def quantize_activations(x: torch.Tensor) -> torch.Tensor:
    """int8 in groups of 32, scale absmax / 127: what packed linears compute on, as float64."""
    groups = x.float().unflatten(-1, (-1, 32))
    absmax = groups.abs().amax(-1, keepdim=True)
    # One rounding: `127.0 / absmax` would be a reciprocal and a product.
    inverse = torch.where(absmax > 0, torch.full_like(absmax, 127.0) / absmax, 0.0)
    quants = torch.round(groups * inverse).clamp(-127, 127)
    return (quants.double() * (absmax / 127.0).double()).flatten(-2)
