# SPDX-License-Identifier: Apache-2.0
"""One or several weight matrices that read the same input and write side by side."""

from __future__ import annotations

import torch

from lampo import ops
from lampo.weights import Checkpoint, QuantizedTensor

_STRIP_ROWS = 16


class Projection:
    """``out = x W^T + b``, with W = [W_1; W_2; ...], for example q, k and v.

    Parts of one format become one matrix, so that x is quantized and the threads are woken once.
    Parts of different formats (a GGUF may hold v in more bits than q) stay apart and write into
    slices of ``out``.
    """

    def __init__(
        self, weights: list[ops.Weight], bias: torch.Tensor | None, activation_bits: int = 8
    ) -> None:
        self.weights = weights
        self.activation_bits = activation_bits
        self.bias = bias
        self.out_features = sum(weight.shape[0] for weight in weights)
        self.nbytes = sum(weight.nbytes for weight in weights)

    def __call__(self, x: torch.Tensor, out: torch.Tensor, workspace: torch.Tensor) -> torch.Tensor:
        if len(self.weights) == 1:
            self._linear(x, self.weights[0], self.bias, out, workspace)
            return out
        start = 0
        for weight in self.weights:
            end = start + weight.shape[0]
            bias = None if self.bias is None else self.bias[start:end]
            self._linear(x, weight, bias, out[:, start:end], workspace)
            start = end
        return out

    def _linear(
        self,
        x: torch.Tensor,
        weight: ops.Weight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor,
    ) -> None:
        bits = self.activation_bits
        ops.linear(x, weight, bias, activation_bits=bits, out=out, workspace=workspace)


def load_weights(
    checkpoint: Checkpoint, names: list[str], dtype: torch.dtype | None
) -> list[ops.Weight]:
    """The named matrices, stacked where their formats agree, each released from the mapping.

    Args:
        checkpoint: where they are.
        names: Hugging Face names, without ".weight".
        dtype: convert (and dequantize) to this; None keeps packed weights packed and dense ones in
            their own dtype.
    """
    tensors = [checkpoint.load(f"{name}.weight") for name in names]
    if dtype is not None:
        tensors = [
            (t.dequantize() if isinstance(t, QuantizedTensor) else t).to(dtype) for t in tensors
        ]
    packed = [t for t in tensors if isinstance(t, QuantizedTensor)]
    dense = [t for t in tensors if isinstance(t, torch.Tensor)]
    weights: list[ops.Weight]
    if packed and not dense and len({t.format for t in packed}) == 1:
        weights = _pack(packed)
    elif dense and not packed and len({t.dtype for t in dense}) == 1:
        weights = [dense[0] if len(dense) == 1 else torch.cat(dense)]
    else:
        weights = [
            ops.pack_weight(t.blocks, t.format) if isinstance(t, QuantizedTensor) else t
            for t in tensors
        ]
    # A single dense matrix is used where it is mapped; all others have been copied.
    if not (len(dense) == 1 and dtype is None):
        for name in names:
            checkpoint.release(f"{name}.weight")
    return weights


def _pack(tensors: list[QuantizedTensor]) -> list[ops.Weight]:
    """One packed matrix where the parts fill whole strips, else one for each."""
    format, columns = tensors[0].format, tensors[0].shape[1]
    if any(t.shape[0] % _STRIP_ROWS for t in tensors[:-1]):
        return [ops.pack_weight(t.blocks, t.format) for t in tensors]
    rows = sum(t.shape[0] for t in tensors)
    data = torch.empty(
        (rows + _STRIP_ROWS - 1) // _STRIP_ROWS,
        ops.packed_strip_bytes(format, columns),
        dtype=torch.uint8,
    )
    start = 0
    for t in tensors:
        strips = (t.shape[0] + _STRIP_ROWS - 1) // _STRIP_ROWS
        ops.pack_weight(t.blocks, format, out=data[start : start + strips])
        start += strips
    return [ops.PackedWeight(data, format, (rows, columns))]


def load_projection(
    checkpoint: Checkpoint,
    names: list[str],
    dtype: torch.dtype | None,
    *,
    bias: bool,
    activation_bits: int = 8,
) -> Projection:
    """Weights and, where the model has them, biases (as float32) of the named layers."""
    biases = None
    if bias:
        loaded = [checkpoint.load(f"{name}.bias") for name in names]
        biases = torch.cat([t.float() for t in loaded if isinstance(t, torch.Tensor)])
    return Projection(load_weights(checkpoint, names, dtype), biases, activation_bits)
