# SPDX-License-Identifier: Apache-2.0
"""rms_norm and silu_mul on a GPU, against the float64 reference and the CPU kernels."""

from __future__ import annotations

import pytest
import torch

import reference
from cases import ROWS
from compare import SENTINEL, assert_close
from lampo import ops

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
