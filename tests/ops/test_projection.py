# SPDX-License-Identifier: Apache-2.0
"""The conversion of a checkpoint's matrices to weights, and gated feed-forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantized_weights import quantized

from lampo import ops
from lampo.bench import reference
from lampo.models.config import FeedForwardConfig
from lampo.models.projection import RMSNorm
from lampo.models.step import Buffers
from lampo.models.weight_loader import WeightLoader
from lampo.runtime.huge_pages import Arena
from lampo.weights.formats import QuantizedTensor


class Stored:
    """The interface of a checkpoint that a loader uses."""

    def __init__(self, **tensors: torch.Tensor | QuantizedTensor) -> None:
        self.tensors = tensors

    def load(self, name: str) -> torch.Tensor | QuantizedTensor:
        return self.tensors[name.replace(".", "_")]

    def loader(self, dtype: torch.dtype | None = None) -> WeightLoader:
        return WeightLoader(self, dtype)


def stored(rows: int, format: Any, generator: torch.Generator) -> Any:
    if isinstance(format, str):
        blocks, _ = quantized(rows, 64, format, generator)
        return QuantizedTensor(blocks, format, (rows, 64))
    return torch.randn(rows, 64, generator=generator).to(format)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "gate", "up", "count"),
    [
        (32, torch.float32, torch.float32, 1),
        (32, torch.bfloat16, torch.bfloat16, 1),
        (32, "q4_1", "q4_1", 1),
        (32, "q4_0", "q8_0", 2),
        (32, "q8_0", torch.float32, 2),
        (24, "q4_1", "q4_1", 2),
        (24, torch.float32, torch.float32, 2),
    ],
)
def test_gated_feed_forward(generator, rows, gate, up, count, with_bias):
    """One weight by turns where that is possible, else two: the same function."""
    weights = [stored(rows, format, generator) for format in (gate, up)]
    biases = [torch.randn(rows, generator=generator) for _ in range(2)]
    source = Stored(
        gate_weight=weights[0], up_weight=weights[1], gate_bias=biases[0], up_bias=biases[1]
    )
    down = torch.randn(64, rows, generator=generator)
    down_bias = torch.randn(64, generator=generator)
    source.tensors |= {"down_weight": down, "down_bias": down_bias}
    config = FeedForwardConfig(rows, with_bias)
    feed_forward = source.loader().gated_feed_forward(config, "gate", "up", "down")
    assert len(feed_forward.gate_up.weights) == count
    x = torch.randn(3, 64, generator=generator)
    norm = RMSNorm(torch.randn(64, generator=generator), 1e-5)
    cpu = torch.device("cpu")
    buffers = Buffers(feed_forward.widths, 3, torch.float32, cpu, linear_width=64)
    out = x.clone()
    feed_forward(out, norm, buffers.rows(3))
    normed = reference.rms_norm(x, norm.weight, 1e-5)
    g, u = (
        reference.linear(normed, w.dequantize() if isinstance(w, QuantizedTensor) else w, bias)
        for w, bias in zip(weights, biases if with_bias else [None, None], strict=True)
    )
    bias = down_bias if with_bias else None
    expected = reference.linear(reference.silu(g) * u, down, bias)
    assert (out - x - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("format", [torch.bfloat16, "q4_0"])
def test_weights_are_copied_and_tables_are_not(generator, format):
    source = Stored(head_weight=stored(32, format, generator))
    (weight,) = source.loader().weights(["head"])
    table = source.loader().table("head")
    rows = [ops.embedding(torch.arange(32), w) for w in (weight, table)]
    assert torch.equal(*rows)
    held = source.tensors["head_weight"]
    assert (table is held) == isinstance(held, torch.Tensor)
    assert weight is not held
    converted = source.loader(torch.float32).table("head")
    assert isinstance(converted, torch.Tensor) and converted.dtype == torch.float32


def test_arena():
    """Tensors do not overlap, begin with a cache line, and outlive the arena."""
    arena = Arena()
    shapes = [(3, 5), (0, 7), (1,), (1 << 20, 70), (4, 4)]
    tensors = [arena.empty(*shape, dtype=torch.bfloat16) for shape in shapes]
    del arena
    for i, tensor in enumerate(tensors):
        assert tensor.shape == shapes[i] and tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(i)
    assert all((tensor == i).all() for i, tensor in enumerate(tensors))
