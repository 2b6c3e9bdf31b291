# SPDX-License-Identifier: Apache-2.0
"""One or several weight matrices that read the same input and write side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lampo import ops
from lampo.models.step import Rows


@dataclass(frozen=True)
class RMSNorm:
    """``x * weight / sqrt(mean(x^2) + eps)``, computed by the linear that follows."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, RMSNorm | None]:
        """The input of a projection: x, and the norm to apply."""
        return x, self


@dataclass(frozen=True)
class LayerNorm:
    """``(x - mean) / sqrt(var + eps) * weight + bias``."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float

    def __call__(self, x: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, RMSNorm | None]:
        """The input of a projection: the normed x, in `rows`, and no norm to apply."""
        out = rows.get("normed", x.shape[1])
        ops.layer_norm(x, self.weight, self.bias, self.eps, out=out)
        return out, None


@dataclass(frozen=True)
class Unnormed:
    """The input of a projection as it is, in architectures that have norms after parts alone."""

    def __call__(self, x: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, RMSNorm | None]:
        return x, None


Norm = RMSNorm | LayerNorm | Unnormed


@dataclass(frozen=True)
class ActivationBits:
    """Precision of a projection's input per kind of weight: activation_bits of ops.linear."""

    packed: int = 8
    dense: int = 16


# Packed weights: the mean divergence of SmolLM2 (Q4_1) from the exact model is 7e-4, with 8 bits
# everywhere 3.6e-3, with 9 bits everywhere 4.3e-4, and below 1e-6 with 16. Without 9 bits in the
# first and the last `down` it is 9.3e-4. What remains is uniform: 1.4e-4 from the LM head, and 1e-6
# to 1e-5 from each other projection. One bit more halves an error, and a quarter of the divergence
# remains; but the products are of 8 bits, so that it takes 16.
# BF16 weights: x is split into two BF16. One suffices before gate and up, half of all products: the
# divergence is 3e-5, with one BF16 everywhere 1.0e-4.
INNER = ActivationBits()
SENSITIVE = ActivationBits(packed=9)
GATE_UP = ActivationBits(packed=9, dense=8)


@dataclass
class Projection:
    """``out = x W^T + b``, with W = [W_1; W_2; ...], for example q, k and v.

    Parts of one format become one matrix, so that x is quantized and the threads are woken once.
    Parts of different formats (a GGUF may store v in more bits than q) stay separate and write into
    slices of ``out``.

    Attributes:
        weights: [out_features_i, in_features] each.
        bias: [sum of out_features] float32, or None.
        activation_bits: precision of x.
    """

    weights: list[ops.Weight]
    bias: torch.Tensor | None = None
    activation_bits: ActivationBits = INNER

    @property
    def out_features(self) -> int:
        return sum(weight.shape[0] for weight in self.weights)

    def temporary_bytes(self, num_tokens: int, dtype: torch.dtype) -> int:
        """Bytes that :meth:`__call__` allocates and frees on CUDA for activations of this type."""
        return max(ops.linear_temporary_bytes(num_tokens, w, dtype) for w in self.weights)

    def __call__(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        norm: RMSNorm | None = None,
        silu_mul: bool = False,
        accumulate: bool = False,
    ) -> torch.Tensor:
        """Writes ``norm(x) W^T + b`` into ``out``, or adds it; options as in ops.linear."""
        start = 0
        whole = len(self.weights) == 1
        for weight in self.weights:
            end = start + weight.shape[0]
            ops.linear(
                x,
                weight,
                self.bias if whole or self.bias is None else self.bias[start:end],
                norm_weight=None if norm is None else norm.weight,
                norm_eps=0.0 if norm is None else norm.eps,
                silu_mul=silu_mul,
                accumulate=accumulate,
                activation_bits=self._bits(weight),
                out=out if whole else out[:, start:end],
                workspace=workspace,
            )
            start = end
        return out

    def _bits(self, weight: ops.Weight) -> int:
        bits = self.activation_bits
        return bits.packed if isinstance(weight, ops.PackedWeight) else bits.dense
