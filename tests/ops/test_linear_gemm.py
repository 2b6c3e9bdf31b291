# SPDX-License-Identifier: Apache-2.0
"""linear's products by cuBLAS on CUDA, as far as they can be tested on a CPU."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from compare import assert_close
from quantized_weights import FORMATS, quantized, whole_blocks

from lampo import ops
from lampo.bench import reference
from lampo.ops._gemm import linear_by_gemm, takes_gemm

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def test_takes_gemm():
    """device, rows, x, weight (None: packed), out."""
    assert not takes_gemm("cuda", 16, BF16, BF16, BF16)
    assert takes_gemm("cuda", 17, BF16, BF16, BF16)
    assert takes_gemm("cuda", 17, F32, F32, F32)
    assert not takes_gemm("cpu", 5000, BF16, BF16, BF16)
    assert not takes_gemm("cuda", 128, BF16, None, BF16)
    assert takes_gemm("cuda", 129, BF16, None, BF16)
    assert takes_gemm("cuda", 17, BF16, BF16, F32) == ("dtype" in torch.ops.aten.mm.overloads())
    for types in ((F32, BF16, F32), (BF16, F32, BF16), (F32, BF16, BF16), (F32, None, BF16)):
        assert not takes_gemm("cuda", 5000, *types), "would round what the kernel does not"
    assert not takes_gemm("cuda", 5000, F16, F16, F16), "rms_norm does not know float16"


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("norm", "silu_mul", "accumulate"), list(product([False, True], repeat=3)))
def test_linear_by_gemm(generator, dtype, norm, silu_mul, accumulate):
    rows, columns, tokens = 64, 40, 19
    width = rows // 2 if silu_mul else rows
    x = torch.randn(tokens, columns + 3, generator=generator).to(dtype)[:, :columns]
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    bias = torch.randn(rows, generator=generator)
    norm_weight = torch.randn(columns, generator=generator) if norm else None
    before = torch.randn(tokens, width + 1, generator=generator).to(dtype)[:, :width]
    out = before.clone()
    linear_by_gemm(x, weight, bias, norm_weight, 1e-5, silu_mul, accumulate, out)
    y = x.double() if norm_weight is None else reference.rms_norm(x, norm_weight, 1e-5)
    y = reference.linear(y, weight, bias)
    if silu_mul:
        y = reference.gate_columns(y)
    expected = y + before.double() if accumulate else y
    # Every step is rounded: the norm, the product, the bias, the gate, the sum.
    floor = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    assert_close(out, expected, floor=floor)


def test_linear_by_gemm_refuses_what_does_not_fit():
    x, weight, out = torch.zeros(17, 8), torch.zeros(4, 8), torch.zeros(17, 4)
    nothing = (None, None, 1e-6, False, False)
    with pytest.raises(ValueError, match=r"weight: expected shape \[4, 8\], got \[4, 9\]"):
        linear_by_gemm(x, torch.zeros(4, 9), *nothing, out)
    with pytest.raises(ValueError, match=r"out: expected shape \[17, 4\], got \[1, 4\]"):
        linear_by_gemm(x, weight, *nothing, out[:1])


@pytest.mark.parametrize("format", FORMATS)
def test_packed_weights_move(generator, format):
    blocks, dense = quantized(40, whole_blocks(64, format), format, generator)
    weight = ops.pack_weight(blocks, format)
    moved = weight.to("meta")
    assert (moved.shape, moved.format) == (weight.shape, format)
    assert moved.data.device.type == "meta"
    # The dequantization of a large product.
    assert torch.equal(ops.embedding(torch.arange(40), weight.to("cpu")), dense)
