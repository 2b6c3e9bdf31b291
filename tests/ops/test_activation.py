# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from compare import SENTINEL, assert_close

from lampo import ops
from lampo.bench import reference

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [(0, 4), (1, 1), (3, 7), (2, 16), (5, 1536), (64, 1000)]
# Tolerated absolute error of the polynomials, for arguments of any size.
FLOOR = 5e-7


def inputs(shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(shape, generator=generator) * 6
    if x.numel() > 16:
        x.view(-1)[:8] = torch.tensor([0.0, -0.0, 100.0, -100.0, 1e-20, -1e-3, 3e4, -3e4])
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["silu_mul", "gelu_mul", "gelu_mul_tanh"])
def test_gated(isa, generator, dtype, size, name):
    num_tokens, width = size
    gate_up = inputs((num_tokens, 2 * width), dtype, generator)
    gate, up = gate_up[:, :width], gate_up[:, width:]
    out = torch.full(size, SENTINEL, dtype=dtype)
    if name == "silu_mul":
        ops.silu_mul(gate_up, out=out)
        expected = reference.silu(gate) * up.double()
    else:
        tanh = name.endswith("tanh")
        ops.gelu_mul(gate_up, tanh_approximation=tanh, out=out)
        expected = reference.gelu(gate, tanh) * up.double()
    if out.numel():
        assert_close(out, expected, floor=FLOOR * float(up.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu(isa, generator, dtype, tanh):
    x = inputs((9, 333), dtype, generator)
    out = ops.gelu(x, tanh_approximation=tanh)
    assert_close(out, reference.gelu(x, tanh), floor=FLOOR * 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft_cap", [None, 30.0])
def test_scale(isa, generator, dtype, soft_cap):
    """In place as well."""
    x = inputs((9, 333), dtype, generator)
    expected = reference.scale(x, 0.75, soft_cap)
    out = ops.scale(x, 0.75, soft_cap=soft_cap)
    assert_close(out, expected, floor=FLOOR * (soft_cap or 1))
    ops.scale(x, 0.75, soft_cap=soft_cap, out=x)
    assert torch.equal(x, out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_by_position(isa, generator, dtype):
    x = inputs((9, 333), dtype, generator)
    positions = torch.tensor([0, 1, 4095, 4096, 8191, 8192, 3, 1 << 24, 12288])
    out = ops.scale_by_position(x, positions, beta=0.1, length=4096)
    assert torch.equal(out[:3], x[:3]), "a factor of one is exact"
    expected = reference.scale_by_position(x, positions, 0.1, 4096)
    assert_close(out, expected, floor=FLOOR * float(expected.abs().max()))


def test_soft_caps_out_of_range():
    for soft_cap in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="soft_cap: "):
            ops.scale(torch.zeros(2, 8), 1.0, soft_cap=soft_cap)


def test_silu_is_accurate_everywhere(isa):
    x = torch.linspace(-100, 100, 200_001).reshape(1, -1)
    ones = torch.ones_like(x)
    out = ops.silu_mul(torch.cat([x, ones], dim=1))
    expected = reference.silu(x)
    error = (out.double() - expected).abs() / expected.abs().clamp_min(1e-30)
    assert error[expected.abs() > 1e-30].max() < 4e-7


def test_odd_width():
    with pytest.raises(ValueError, match="gate_up: expected an even last dimension"):
        ops.silu_mul(torch.zeros(2, 7))
