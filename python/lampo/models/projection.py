# SPDX-License-Identifier: Apache-2.0
"""One or several weight matrices that read the same input and write side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lampo import ops
from lampo.weights import Checkpoint, QuantizedTensor

_STRIP_ROWS = 16


@dataclass(frozen=True)
class Norm:
    """The RMS norm before a projection: ``x * weight / sqrt(mean(x^2) + eps)``."""

    weight: torch.Tensor
    eps: float

    def to(self, device: torch.device) -> Norm:
        return Norm(self.weight.to(device), self.eps)


@dataclass(frozen=True)
class ActivationBits:
    """How a projection rounds its input, by the kind of weight: activation_bits of ops.linear."""

    packed: int = 8
    dense: int = 16


class Projection:
    """``out = x W^T + b``, with W = [W_1; W_2; ...], for example q, k and v.

    Parts of one format become one matrix, so that x is quantized and the threads are woken once.
    Parts of different formats (a GGUF may hold v in more bits than q) stay apart and write into
    slices of ``out``.
    """

    def __init__(
        self,
        weights: list[ops.Weight],
        bias: torch.Tensor | None,
        activation_bits: ActivationBits = ActivationBits(),
    ) -> None:
        self.weights = weights
        self.activation_bits = activation_bits
        self.bias = bias
        self.out_features = sum(weight.shape[0] for weight in weights)
        self.nbytes = sum(weight.nbytes for weight in weights)

    def to(self, device: torch.device) -> Projection:
        return self.with_weights([weight.to(device) for weight in self.weights])

    def with_weights(self, weights: list[ops.Weight]) -> Projection:
        """The same projection of weights that have been moved, its bias with them."""
        device = weights[0].device
        bias = None if self.bias is None else self.bias.to(device)
        return Projection(weights, bias, self.activation_bits)

    def __call__(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        norm: Norm | None = None,
        accumulate: bool = False,
    ) -> torch.Tensor:
        """Writes ``norm(x) W^T + b`` into ``out``, or adds it."""
        start = 0
        for weight in self.weights:
            end = start + weight.shape[0]
            whole = len(self.weights) == 1
            ops.linear(
                x,
                weight,
                self.bias if whole or self.bias is None else self.bias[start:end],
                norm_weight=None if norm is None else norm.weight,
                norm_eps=0.0 if norm is None else norm.eps,
                accumulate=accumulate,
                activation_bits=self._bits(weight),
                out=out if whole else out[:, start:end],
                workspace=workspace,
            )
            start = end
        return out

    def silu_mul(
        self, x: torch.Tensor, out: torch.Tensor, workspace: torch.Tensor, *, norm: Norm
    ) -> torch.Tensor:
        """Writes ``silu(g) * u``, [g, u] = norm(x) W^T + b, into ``out``."""
        if len(self.weights) == 1 and self.out_features % (2 * _STRIP_ROWS) == 0:
            return ops.linear(
                x,
                self.weights[0],
                self.bias,
                norm_weight=norm.weight,
                norm_eps=norm.eps,
                silu_mul=True,
                activation_bits=self._bits(self.weights[0]),
                out=out,
                workspace=workspace,
            )
        gate_up = x.new_empty(x.shape[0], self.out_features)
        return ops.silu_mul(self(x, gate_up, workspace, norm=norm), out=out)

    def _bits(self, weight: ops.Weight) -> int:
        bits = self.activation_bits
        return bits.packed if isinstance(weight, ops.PackedWeight) else bits.dense


class WeightLoader:
    """Reads the matrices of a checkpoint into the form in which the ops want them.

    Args:
        checkpoint: where they are.
        dtype: convert (and dequantize) to this; None keeps packed weights packed and dense ones in
            their own dtype.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype

    def weights(self, names: list[str]) -> list[ops.Weight]:
        """The named matrices ("model.embed_tokens"), stacked where their formats agree.

        What has been copied leaves the mapping's memory.
        """
        tensors = [self.checkpoint.load(f"{name}.weight") for name in names]
        if self.dtype is not None:
            tensors = [
                (t.dequantize() if isinstance(t, QuantizedTensor) else t).to(self.dtype)
                for t in tensors
            ]
        packed = [t for t in tensors if isinstance(t, QuantizedTensor)]
        dense = [t for t in tensors if isinstance(t, torch.Tensor)]
        weights: list[ops.Weight]
        if packed and not dense and len({t.format for t in packed}) == 1:
            weights = self._pack(packed)
        elif dense and not packed and len({t.dtype for t in dense}) == 1:
            weights = [dense[0] if len(dense) == 1 else torch.cat(dense)]
        else:
            weights = []
            for t in tensors:
                weights += self._pack([t]) if isinstance(t, QuantizedTensor) else [t]
        # A single dense matrix is used where it is mapped; all others have been copied.
        if not (len(dense) == 1 and self.dtype is None):
            for name in names:
                self.checkpoint.release(f"{name}.weight")
        return weights

    def projection(
        self,
        names: list[str],
        *,
        bias: bool = False,
        activation_bits: ActivationBits = ActivationBits(),
    ) -> Projection:
        """Weights and, where the model has them, biases (as float32) of the named layers."""
        biases = None
        if bias:
            loaded = [self.checkpoint.load(f"{name}.bias") for name in names]
            biases = torch.cat([t.float() for t in loaded if isinstance(t, torch.Tensor)])
        return Projection(self.weights(names), biases, activation_bits)

    def _pack(self, tensors: list[QuantizedTensor]) -> list[ops.Weight]:
        """One packed matrix where the parts fill whole strips, else one for each."""
        if any(t.shape[0] % _STRIP_ROWS for t in tensors[:-1]):
            return [weight for t in tensors for weight in self._pack([t])]
        format, columns = tensors[0].format, tensors[0].shape[1]
        strips = [-(-t.shape[0] // _STRIP_ROWS) for t in tensors]
        strip_bytes = ops.packed_strip_bytes(format, columns)
        data = torch.empty(sum(strips), strip_bytes, dtype=torch.uint8)
        for tensor, part in zip(tensors, data.split(strips), strict=True):
            ops.pack_weight(tensor.blocks, format, out=part)
        rows = sum(t.shape[0] for t in tensors)
        return [ops.PackedWeight(data, format, (rows, columns))]
