# SPDX-License-Identifier: Apache-2.0
"""Norms, activations, embedding and append_kv on a GPU, against the float64 reference and the CPU
kernels."""

from __future__ import annotations

import dataclasses

import paging
import pytest
import torch
from cases import ROWS
from compare import SENTINEL, assert_close
from quantized_weights import random_blocks, whole_blocks
from test_kv_cache import CACHE_DTYPES, HEADS, KV_HEADS, cos_sin_table

from lampo import ops
from lampo.bench import reference

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16]


def padded(shape: tuple[int, int], pad: int, dtype: torch.dtype, gpu: torch.device) -> torch.Tensor:
    """Random rows, `pad` elements apart; pad 3 makes them unaligned."""
    generator = torch.Generator().manual_seed(shape[0] * 131 + shape[1])
    data = torch.randn(shape[0], shape[1] + pad, generator=generator)
    return data.to(gpu, dtype)[:, : shape[1]]


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("pad", [0, 3, 16])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(gpu, dtype, weight_dtype, shape, pad, with_residual):
    x = padded(shape, pad, dtype, gpu)
    weight = padded((1, shape[1]), 0, weight_dtype, gpu)[0]
    residual = padded(shape, pad, dtype, gpu).flip(0) if with_residual else None
    normed = x if residual is None else x + residual
    backing = torch.full((shape[0], shape[1] + pad), SENTINEL, dtype=dtype, device=gpu)
    out = backing[:, : shape[1]]
    ops.rms_norm(x, weight, 1e-5, residual=residual, out=out)
    plain = torch.nn.functional.rms_norm(normed, (shape[1],), weight.to(dtype), 1e-5)
    if x.numel():
        assert_close(out, reference.rms_norm(normed, weight, 1e-5), plain)
    if residual is not None:
        assert torch.equal(residual, normed)
    assert (backing[:, shape[1] :] == backing.new_tensor(SENTINEL)).all(), "wrote past a row"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden_size", [128, 576, 4096, 20000, 70000])
def test_rms_norm_does_not_depend_on_the_batch(gpu, dtype, hidden_size):
    x = padded((300, hidden_size), 0, dtype, gpu)
    weight = padded((1, hidden_size), 0, dtype, gpu)[0]
    batch = ops.rms_norm(x, weight)
    for row in (0, 1, 299):
        assert torch.equal(ops.rms_norm(x[row : row + 1], weight)[0], batch[row])
    unaligned = torch.empty(300, hidden_size + 1, dtype=dtype, device=gpu)[:, 1:]
    unaligned.copy_(x)
    assert torch.equal(ops.rms_norm(unaligned, weight, out=torch.empty_like(x)), batch)


def test_rms_norm_in_place(gpu):
    x = padded((5, 100), 0, torch.float32, gpu)
    weight = padded((1, 100), 0, torch.float32, gpu)[0]
    expected = ops.rms_norm(x, weight)
    ops.rms_norm(x, weight, out=x)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("pad", [0, 3, 16])
def test_silu_mul(gpu, dtype, shape, pad):
    num_tokens, size = shape
    gate_up = padded((num_tokens, 2 * size), pad, dtype, gpu) * 6
    gate_up = torch.nn.functional.pad(gate_up, (0, pad))[:, : 2 * size]
    gate, up = gate_up[:, :size], gate_up[:, size:]
    backing = torch.full((num_tokens, size + pad), SENTINEL, dtype=dtype, device=gpu)
    out = backing[:, :size]
    ops.silu_mul(gate_up, out=out)
    if out.numel():
        # 6e-7: what exp, reciprocal and two products may be off by, relative.
        expected = reference.silu(gate) * up.double()
        assert_close(out, expected, floor=6e-7 * float(expected.abs().max()))
    assert (backing[:, size:] == backing.new_tensor(SENTINEL)).all(), "wrote past a row"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("with_options", [False, True])
def test_layer_norm(gpu, dtype, shape, with_options):
    x = padded(shape, 0, torch.float32, gpu).add(3).to(dtype)
    weight, bias = padded((2, shape[1]), 0, dtype, gpu)
    residual = padded(shape, 3, dtype, gpu).flip(0) if with_options else None
    normed = x if residual is None else x + residual
    given = bias.clone() if with_options else None
    out = ops.layer_norm(x, weight.clone(), given, 1e-5, residual=residual)
    plain = torch.nn.functional.layer_norm(normed, (shape[1],), weight, given, 1e-5)
    if x.numel():
        assert_close(out, reference.layer_norm(normed, weight, given, 1e-5), plain)
    if residual is not None:
        assert torch.equal(residual, normed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_gelu(gpu, dtype, tanh, gated):
    x = padded((33, 2 * 1000), 3, dtype, gpu) * 6
    op = ops.gelu_mul if gated else ops.gelu
    out = op(x, tanh_approximation=tanh)
    gate = x[:, :1000] if gated else x
    up = x[:, 1000:].double() if gated else torch.ones_like(x, dtype=torch.float64)
    floor = 3e-7 * (gate.double() * up).abs() + 1e-37
    assert_close(out, reference.gelu(gate, tanh) * up, floor=floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft_cap", [None, 30.0])
def test_scale(gpu, dtype, soft_cap):
    x = padded((33, 1003), 3, dtype, gpu) * 20
    out = ops.scale(x, 0.75, soft_cap=soft_cap)
    assert_close(out, reference.scale(x, 0.75, soft_cap), floor=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_by_position(gpu, dtype):
    x = padded((33, 1003), 3, dtype, gpu)
    positions = torch.arange(33, device=gpu)
    out = ops.scale_by_position(x, positions, beta=0.1, length=8)
    expected = reference.scale_by_position(x, positions, 0.1, 8)
    assert_close(out, expected, floor=1e-6 * expected.abs())


@pytest.mark.parametrize("table", [torch.float32, torch.bfloat16, torch.float16, "q4_0", "q8_0"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(gpu, table, dtype):
    """The CPU's bits; zeros for ids out of range."""
    token_ids = torch.arange(-1, 24)
    if isinstance(table, str):
        generator = torch.Generator().manual_seed(0)
        blocks = random_blocks(23, whole_blocks(2112, table), table, generator)
        weight = ops.pack_weight(blocks, table)
        on_gpu = dataclasses.replace(weight, data=weight.data.to(gpu))
    else:
        weight = padded((23, 2112), 0, table, torch.device("cpu"))
        on_gpu = weight.to(gpu)
    out = ops.embedding(token_ids.to(gpu), on_gpu, dtype=dtype).cpu()
    assert torch.equal(out[1:-1], ops.embedding(token_ids[1:-1], weight, dtype=dtype))
    assert not out[0].any() and not out[-1].any()


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_append_kv(gpu, dtype, cache_dtype, interleaved):
    """The CPU's bits; slots of -1 and out of range are not written."""
    tokens, num_pages = 500, 64
    given = {
        name: padded((tokens, heads * 128), 0, dtype, torch.device("cpu")).view(tokens, heads, 128)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    }
    for name in ("k", "v"):
        shape = (num_pages, KV_HEADS, 16, 128)
        given[f"{name}_cache"] = torch.zeros(shape).to(cache_dtype)
        if cache_dtype in paging.SCALE_LIMIT:
            given[f"{name}_scale"] = torch.full(shape[:3], -1.0)
    slots = torch.randperm(num_pages * 16)[:tokens]
    slots[7] = -1
    given |= {
        "slot_mapping": slots,
        "positions": torch.arange(tokens),
        "cos_sin": cos_sin_table(tokens, 96),
    }
    there = {k: v.to(gpu) for k, v in given.items()}
    there["slot_mapping"][7] = num_pages * 16
    ops.append_kv(**there, interleaved=interleaved)
    ops.append_kv(**given, interleaved=interleaved)
    for name in ("q", "k_cache", "v_cache", "k_scale", "v_scale"):
        if name in given:
            bits = [x[name].cpu().view(torch.uint8) for x in (given, there)]
            assert torch.equal(*bits), name


def test_silu_extremes(gpu):
    values = [0.0, -0.0, 88.0, -88.0, 200.0, -200.0, 1e-30, -1e-3, 3e38, -3e38]
    gate = torch.tensor([values], device=gpu)
    out = ops.silu_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))
    torch.testing.assert_close(out.double(), reference.silu(gate), rtol=5e-7, atol=1e-35)


def test_offsets_beyond_32_bits(gpu):
    """Rows more than 2^31 elements apart."""
    stride = (1 << 31) + 64
    if torch.cuda.mem_get_info(gpu)[0] < 14 << 30:
        pytest.skip("needs 14 GiB of free GPU memory")
    far = torch.empty(2 * stride, dtype=torch.bfloat16, device=gpu).as_strided((2, 64), (stride, 1))
    near = padded((2, 64), 0, torch.bfloat16, gpu)
    weight = torch.ones(64, device=gpu)
    far.copy_(near)
    assert torch.equal(ops.rms_norm(far, weight, out=torch.empty_like(near)), _norm(near, weight))
    assert torch.equal(
        ops.silu_mul(far, out=torch.empty(2, 32, dtype=near.dtype, device=gpu)),
        ops.silu_mul(near),
    )
    ops.rms_norm(near, weight, out=far)
    assert torch.equal(far, _norm(near, weight))


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return ops.rms_norm(x, weight, out=torch.empty_like(x))


def test_work_goes_to_the_current_stream(gpu):
    """A captured call runs when its graph is replayed, and only then."""
    x = padded((4, 256), 0, torch.float32, gpu)
    weight = torch.ones(256, device=gpu)
    out = torch.zeros_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.rms_norm(x, weight, out=out)
    assert not out.any()
    graph.replay()
    assert torch.equal(out, _norm(x, weight))


def test_tensors_must_share_a_device(gpu):
    x = torch.zeros(2, 8, device=gpu)
    with pytest.raises(ValueError, match="weight: expected a tensor on cuda:0, got one on cpu"):
        ops.rms_norm(x, torch.zeros(8))
