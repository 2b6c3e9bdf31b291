# SPDX-License-Identifier: Apache-2.0
"""Quantization: small errors, extreme values, the same bits on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from quantized_weights import dequantized

from lampo import _C, ops
from lampo.llm_arguments import QUANTIZATIONS

# Error of a Gaussian weight, relative to its norm: a little above what the search reaches.
ERRORS = {"q4_0": 0.084, "q4_1": 0.073, "q5_0": 0.0415, "q5_1": 0.0353, "q8_0": 0.0055}
ERRORS |= {"q2_k": 0.285, "q3_k": 0.155, "q4_k": 0.074, "q5_k": 0.037, "q6_k": 0.018}
ERRORS |= {"iq4_nl": 0.079, "iq4_xs": 0.080}


def relative_error(weight: torch.Tensor, format: str) -> float:
    found = dequantized(ops.quantize_weight(weight, format), format)
    return float((found - weight).double().norm() / weight.double().norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", QUANTIZATIONS)
def test_error(isa, generator, format, dtype):
    weight = (torch.randn(40, 520, generator=generator) * 0.02).to(dtype)[:, :512]
    assert relative_error(weight.float(), format) < ERRORS[format]
    blocks = ops.quantize_weight(weight, format)
    assert torch.equal(blocks, ops.quantize_weight(weight.float().contiguous(), format))


@pytest.mark.parametrize("format", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_not_worse_than_rounding(generator, format):
    """The `gguf` package rounds by the largest weight; columns of many sizes."""
    weight = torch.randn(64, 512, generator=generator) * torch.randn(512, generator=generator).exp()
    rounded = dequantized(
        torch.from_numpy(quants.quantize(weight.numpy(), GGMLQuantizationType[format.upper()])),
        format,
    )
    error = float((rounded - weight).double().norm() / weight.double().norm())
    assert relative_error(weight, format) <= error * 1.001


@pytest.mark.parametrize("format", QUANTIZATIONS)
def test_what_the_format_can_hold_is_exact(generator, format):
    """Integers within its range, one of them at an end, with a scale of 1/8."""
    if format.startswith("iq4"):
        pytest.skip("its codes are no integers")
    high = {"q3_k": 3, "q4_0": 7, "q5_0": 15, "q6_k": 31, "q8_0": 127}.get(format)
    low = -128 + 1 if format == "q8_0" else None if high is None else -high - 1
    if high is None:
        low, high = 0, {"2": 3, "4": 15, "5": 31}[format[1]]
    weight = torch.randint(low, high + 1, (8, 512), generator=generator).float()
    weight[:, ::16], weight[:, 1::16] = low, high
    weight /= 8
    found = dequantized(ops.quantize_weight(weight, format), format)
    assert (found - weight).abs().max() <= (0 if format[-1] in "01" else 2e-3)


@pytest.mark.parametrize("format", QUANTIZATIONS)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-20, 6e4, -6e4])
def test_constant_rows(isa, format, value):
    weight = torch.full((3, 256), value)
    found = dequantized(ops.quantize_weight(weight, format), format)
    assert found.isfinite().all()
    assert (found - weight).abs().max() <= 0.01 * abs(value) + 1e-7


@pytest.mark.parametrize("format", QUANTIZATIONS)
def test_what_is_not_finite_becomes_zero(isa, generator, format):
    weight = torch.randn(4, 256, generator=generator)
    broken = weight.clone()
    broken[0, 3], broken[1, 100], broken[2, 255] = torch.nan, torch.inf, -torch.inf
    expected = torch.where(broken.isfinite(), broken, torch.zeros(()))
    assert torch.equal(ops.quantize_weight(broken, format), ops.quantize_weight(expected, format))


@pytest.mark.parametrize("format", QUANTIZATIONS)
def test_instruction_sets_and_threads_agree(generator, format):
    weight = torch.randn(70, 512, generator=generator) * 3
    before, threads = _C.cpu_isa(), _C.num_threads()
    found = []
    try:
        for name in _C.runnable_isas():
            for count in (1, 3):
                _C.set_cpu_isa(name)
                _C.set_num_threads(count)
                found.append(ops.quantize_weight(weight, format))
    finally:
        _C.set_cpu_isa(before)
        _C.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_bad_arguments():
    weight = torch.zeros(4, 256)
    with pytest.raises(ValueError, match=r"format: expected one of q4_0, q4_1, .* got mxfp4"):
        ops.quantize_weight(weight, "mxfp4")
    with pytest.raises(ValueError, match="weight: expected a positive multiple of 256 columns"):
        ops.quantize_weight(weight[:, :32], "q4_k")
    with pytest.raises(ValueError, match=r"blocks: expected shape \[4, 144\]"):
        ops.quantize_weight(weight, "q4_k", blocks=torch.zeros(4, 100, dtype=torch.uint8))
    with pytest.raises((TypeError, ValueError), match="weight"):
        ops.quantize_weight(weight.double(), "q4_k")
    with pytest.raises((TypeError, ValueError), match="weight"):
        ops.quantize_weight(np.zeros((4, 256), dtype=np.int32), "q4_k")
