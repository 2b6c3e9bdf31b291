# SPDX-License-Identifier: Apache-2.0
"""One or several weight matrices that read the same input and write side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lampo import ops
from lampo.models.checkpoint import Checkpoint
from lampo.runtime.huge_pages import Arena
from lampo.weights.formats import QuantizedTensor

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
        silu_mul: bool = False,
        accumulate: bool = False,
    ) -> torch.Tensor:
        """Writes ``norm(x) W^T + b`` into ``out``, or adds it; what is fused, as in ops.linear."""
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


@dataclass(frozen=True)
class GatedProjection:
    """``out = silu(g) * u``, with g and u two products of the same input.

    Attributes:
        gate_up: of one weight, ops.gate_and_up of the two, or of gate and up, where their formats
            or sizes do not allow that.
    """

    gate_up: Projection

    @property
    def nbytes(self) -> int:
        return self.gate_up.nbytes

    def to(self, device: torch.device) -> GatedProjection:
        return GatedProjection(self.gate_up.to(device))

    def __call__(
        self, x: torch.Tensor, out: torch.Tensor, workspace: torch.Tensor, *, norm: Norm
    ) -> torch.Tensor:
        """Writes ``silu(g) * u``, of norm(x), into ``out``."""
        if len(self.gate_up.weights) == 1:
            return self.gate_up(x, out, workspace, norm=norm, silu_mul=True)
        gate_up = x.new_empty(x.shape[0], self.gate_up.out_features)
        return ops.silu_mul(self.gate_up(x, gate_up, workspace, norm=norm), out=out)


class WeightLoader:
    """Reads the matrices of a checkpoint into the form in which the ops want them, side by side in
    huge pages. What has been copied leaves the mapping's memory.

    Args:
        checkpoint: where they are.
        dtype: convert (and dequantize) to this; None keeps packed weights packed and dense ones in
            their own dtype.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype | None) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self._arena = Arena()

    def weights(self, names: list[str], *, in_turn: bool = False) -> list[ops.Weight]:
        """The named matrices ("model.layers.0.mlp.up_proj"), stacked where their formats agree.

        Args:
            in_turn: of two matrices, stacked as by ops.gate_and_up.
        """
        tensors = [self.checkpoint.load(f"{name}.weight") for name in names]
        if self.dtype is not None:
            tensors = [
                (t.dequantize() if isinstance(t, QuantizedTensor) else t).to(self.dtype)
                for t in tensors
            ]
        packed = [t for t in tensors if isinstance(t, QuantizedTensor)]
        dense = [t for t in tensors if isinstance(t, torch.Tensor)]
        stackable = not in_turn or all(t.shape[0] % _STRIP_ROWS == 0 for t in tensors)
        weights: list[ops.Weight]
        if packed and not dense and stackable and len({t.format for t in packed}) == 1:
            weights = self._pack(packed, in_turn)
        elif dense and not packed and stackable and len({t.dtype for t in dense}) == 1:
            weights = [self._stack(dense, in_turn)]
        else:
            weights = []
            for t in tensors:
                weights += self._pack([t]) if isinstance(t, QuantizedTensor) else [self._stack([t])]
        for name in names:
            self.checkpoint.release(f"{name}.weight")
        return weights

    def table(self, name: str) -> ops.Weight:
        """A matrix of which single rows are read: a dense one stays where it is mapped."""
        tensor = self.checkpoint.load(f"{name}.weight")
        if isinstance(tensor, torch.Tensor) and self.dtype in (None, tensor.dtype):
            return tensor
        (weight,) = self.weights([name])
        return weight

    def projection(
        self,
        names: list[str],
        *,
        bias: bool = False,
        activation_bits: ActivationBits = ActivationBits(),
    ) -> Projection:
        """Weights and, where the model has them, biases (as float32) of the named layers."""
        biases = torch.cat(self._biases(names)) if bias else None
        return Projection(self.weights(names), biases, activation_bits)

    def gated_projection(
        self,
        gate: str,
        up: str,
        *,
        bias: bool = False,
        activation_bits: ActivationBits = ActivationBits(),
    ) -> GatedProjection:
        """As :meth:`projection`, of the two layers of a gated feed-forward."""
        names = [gate, up]
        weights = self.weights(names, in_turn=True)
        biases = None
        if bias:
            parts = self._biases(names)
            biases = ops.gate_and_up(*parts) if len(weights) == 1 else torch.cat(parts)
        return GatedProjection(Projection(weights, biases, activation_bits))

    def _biases(self, names: list[str]) -> list[torch.Tensor]:
        loaded = [self.checkpoint.load(f"{name}.bias") for name in names]
        return [t.float() for t in loaded if isinstance(t, torch.Tensor)]

    def _stack(self, tensors: list[torch.Tensor], in_turn: bool = False) -> torch.Tensor:
        """Dense matrices of one dtype as one."""
        rows, (columns,) = sum(len(t) for t in tensors), {t.shape[1] for t in tensors}
        out = self._arena.empty(rows, columns, dtype=tensors[0].dtype)
        if not in_turn:
            return torch.cat(tensors, out=out)
        strips = [t.unflatten(0, (-1, _STRIP_ROWS)) for t in tensors]
        torch.stack(strips, 1, out=out.view(-1, len(tensors), _STRIP_ROWS, columns))
        return out

    def _pack(self, tensors: list[QuantizedTensor], in_turn: bool = False) -> list[ops.Weight]:
        """One packed matrix where the parts fill whole strips, else one for each."""
        if any(t.shape[0] % _STRIP_ROWS for t in tensors[:-1]):
            return [weight for t in tensors for weight in self._pack([t])]
        format, columns = tensors[0].format, tensors[0].shape[1]
        strips = [-(-t.shape[0] // _STRIP_ROWS) for t in tensors]
        strip_bytes = ops.packed_strip_bytes(format, columns)
        data = self._arena.empty(sum(strips), strip_bytes, dtype=torch.uint8)
        if in_turn:
            parts = data.view(-1, len(tensors), strip_bytes).unbind(1)
        else:
            parts = data.split(strips)
        for tensor, part in zip(tensors, parts, strict=True):
            ops.pack_weight(tensor.blocks, format, out=part)
        rows = sum(t.shape[0] for t in tensors)
        return [ops.PackedWeight(data, format, (rows, columns))]
