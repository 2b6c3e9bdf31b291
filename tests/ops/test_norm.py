# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from compare import SENTINEL, assert_close

from lampo import ops
from lampo.bench import reference

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(0, 64), (1, 1), (3, 5), (2, 16), (4, 576), (7, 1003), (130, 2048)]


def strided(shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Random rows that lie further apart than they are long."""
    return torch.randn(shape[0], shape[1] + 3, generator=generator).to(dtype)[:, : shape[1]]


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(isa, generator, dtype, weight_dtype, shape, with_residual):
    x = strided(shape, dtype, generator)
    weight = torch.randn(shape[1], generator=generator).to(weight_dtype)
    residual = strided(shape, dtype, generator) if with_residual else None
    normed = x if residual is None else x + residual
    out = torch.full((shape[0], shape[1] + 1), SENTINEL, dtype=dtype)[:, :-1]
    result = ops.rms_norm(x, weight, 1e-5, residual=residual, out=out)
    assert result is out
    expected = reference.rms_norm(normed, weight, 1e-5)
    plain = torch.nn.functional.rms_norm(normed, (shape[1],), weight.to(dtype), 1e-5)
    if x.numel():
        assert_close(out, expected, plain)
    if residual is not None:
        assert torch.equal(residual, normed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_layer_norm(isa, generator, dtype, shape, with_bias, with_residual):
    x = strided(shape, dtype, generator) + 3
    weight = torch.randn(shape[1], generator=generator).to(dtype)
    bias = torch.randn(shape[1], generator=generator).to(dtype) if with_bias else None
    residual = strided(shape, dtype, generator) if with_residual else None
    normed = x if residual is None else x + residual
    out = torch.full(shape, SENTINEL, dtype=dtype)
    ops.layer_norm(x, weight, bias, 1e-5, residual=residual, out=out)
    expected = reference.layer_norm(normed, weight, bias, 1e-5)
    plain = torch.nn.functional.layer_norm(normed, (shape[1],), weight, bias, 1e-5)
    if x.numel():
        assert_close(out, expected, plain)
    if residual is not None:
        assert torch.equal(residual, normed)


def test_rms_norm_in_place(isa, generator):
    x = torch.randn(5, 100, generator=generator)
    weight = torch.randn(100, generator=generator)
    expected = ops.rms_norm(x, weight)
    ops.rms_norm(x, weight, out=x)
    assert torch.equal(x, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x: expected shape \[\*, \*\], got \[2, 3, 4\]"),
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "x: unsupported dtype"),
        ({"x": torch.zeros(2, 8, dtype=torch.float16)}, "x: expected float32 or bfloat16, got f"),
        ({"x": torch.zeros(2, 16)[:, ::2]}, "x: expected a contiguous last dimension"),
        ({"weight": torch.zeros(7)}, r"weight: expected shape \[8\], got \[7\]"),
        ({"weight": torch.zeros(8, dtype=torch.bfloat16)}, "weight: expected float32"),
        ({"residual": torch.zeros(1, 8)}, r"residual: expected shape \[2, 8\]"),
        ({"residual": torch.zeros(1, 8).expand(2, 8)}, "residual: is written, so every stride"),
        ({"out": torch.zeros(2, 8, dtype=torch.bfloat16)}, "out: expected float32, got bfloat16"),
        ({"eps": float("nan")}, r"eps: expected a value in \[0, 1\], got nan"),
        ({"weight": [1.0] * 8}, "weight: expected a tensor .*, got list"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "x": torch.zeros(2, 8),
        "weight": torch.zeros(8),
        "eps": 1e-6,
        "residual": None,
        "out": torch.zeros(2, 8),
    } | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.rms_norm(**arguments)
