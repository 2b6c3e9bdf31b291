# SPDX-License-Identifier: Apache-2.0
"""linear on a GPU, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from quantized_weights import CUDA_FORMATS, quantized, whole_blocks

from lampo import ops
from lampo.bench import reference
from lampo.ops._gemm import takes_gemm

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3, 8, 9, 16, 17, 40])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (33, 40), (96, 1001), (4096, 4096), (2112, 14336)]
)
def test_dense(gpu, dtype, weight_dtype, tokens, rows, columns):
    x = random(tokens, columns, dtype=dtype, device=gpu)
    weight = random(rows, columns, dtype=weight_dtype, device=gpu)
    bias = random(rows, dtype=torch.float32, device=gpu)
    out = ops.linear(x, weight, bias)
    if weight_dtype == torch.bfloat16:
        x = reference.bfloat16_terms(x, 16)
    # mma.sync truncates its sums: 2^-22 of the sum of the products' magnitudes, with room.
    floor = 1e-6 * float(x.double().norm(dim=1).max() * weight.double().norm(dim=1).max())
    if takes_gemm("cuda", tokens, dtype, weight_dtype, dtype):
        # cuBLAS's product is rounded before the bias is added to it.
        floor = floor + torch.finfo(dtype).eps * reference.linear(x, weight, None).abs()
    assert_close(out, reference.linear(x, weight, bias), floor=floor)


@pytest.mark.parametrize("tokens", [1, 7, 16])
@pytest.mark.parametrize("silu_mul", [False, True])
def test_fused(gpu, tokens, silu_mul):
    rows, columns = 512, 2048
    width = rows // 2 if silu_mul else rows
    x = random(tokens, columns, dtype=torch.bfloat16, device=gpu)
    weight = random(rows, columns, dtype=torch.bfloat16, device=gpu) / 40
    norm_weight = random(columns, dtype=torch.bfloat16, device=gpu)
    before = random(tokens, width, dtype=torch.float32, device=gpu)
    out = before.clone()
    ops.linear(x, weight, norm_weight=norm_weight, silu_mul=silu_mul, accumulate=True, out=out)
    y = reference.linear(reference.rms_norm(x, norm_weight, 1e-6), weight, None)
    if silu_mul:
        y = reference.gate_columns(y)
    expected = before.double() + y
    assert_close(out, expected, floor=8e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("columns", [1001, 4096, 14336])
def test_rows_do_not_depend_on_the_batch(gpu, columns):
    x = random(16, columns, dtype=torch.bfloat16, device=gpu)
    weight = random(4096, columns, dtype=torch.bfloat16, device=gpu)
    batch = ops.linear(x, weight)
    assert torch.equal(ops.linear(x, weight), batch)
    for first, end in ((0, 1), (5, 9), (15, 16)):
        assert torch.equal(ops.linear(x[first:end], weight), batch[first:end])


def test_captured(gpu):
    x = random(2, 256, dtype=torch.bfloat16, device=gpu)
    weight = random(64, 256, dtype=torch.bfloat16, device=gpu)
    out = torch.zeros(2, 64, dtype=torch.bfloat16, device=gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.linear(x, weight, out=out)
    assert not out.any()
    graph.replay()
    assert torch.equal(out, ops.linear(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", CUDA_FORMATS)
@pytest.mark.parametrize("tokens", [1, 5, 9, 16, 40])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (40, 544), (4096, 4096), (2112, 14336)])
def test_packed(gpu, generator, dtype, format, tokens, rows, columns):
    columns = whole_blocks(columns, format)
    blocks, dense = quantized(rows, columns, format, generator)
    weight = ops.pack_weight(blocks, format).to(gpu)
    x = random(tokens, columns, dtype=dtype, device=gpu)
    out = ops.linear(x, weight)
    floats = format == "fp8_g128"
    rounded = (reference.bfloat16_terms if floats else reference.quantize_activations)(x, 16)
    expected = reference.linear(rounded, dense.to(gpu), None)
    assert_close(out, expected, floor=2e-5 * float(expected.abs().max()))
    if tokens > 5:
        assert torch.equal(ops.linear(x[5:6], weight), out[5:6])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tokens", [17, 129, 1000])
def test_many_rows(gpu, generator, packed, tokens):
    blocks, dense = quantized(512, 1024, "q8_0", generator)
    weight = ops.pack_weight(blocks, "q8_0").to(gpu) if packed else dense.to(gpu, torch.bfloat16)
    x = random(tokens, 1024, dtype=torch.bfloat16, device=gpu)
    expected = reference.linear(x, dense.to(gpu), None)
    assert_close(ops.linear(x, weight), expected, floor=0.02 * float(expected.abs().max()))
