# SPDX-License-Identifier: Apache-2.0
"""Norms, activations and their like of csrc/cuda/ on the CPU, under sanitizers. No GPU needed."""

from __future__ import annotations

import pytest
import torch
from cases import MERGES, ROWS
from compare import assert_close
from quantized_weights import CUDA_FORMATS, random_blocks, whole_blocks

from cuda_on_cpu.fixtures import assert_gaps_untouched, blank, padded
from lampo import ops
from lampo.bench import reference

pytestmark = pytest.mark.long

DTYPES = [torch.float32, torch.bfloat16]


# The sizes are those of the GPU's tests; a sanitizer takes long over a long row, so few of those.
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("pad", [0, 3, 16])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(client, dtype, weight_dtype, shape, pad, with_residual):
    shape = (min(shape[0], 6), shape[1])
    x = padded(shape, pad, dtype)
    weight = padded((shape[1],), 0, weight_dtype)
    residual = padded(shape, pad, dtype).flip(0) if with_residual else None
    normed = x if residual is None else x + residual
    results = []
    for order in ("forward", "backward"):
        out = blank(shape, pad, dtype)
        given = {"x": x, "weight": weight, "out": out}
        if residual is not None:
            given["residual"] = blank(shape, pad, dtype).copy_(residual)
        client.call("rms_norm", eps=1e-5, order=order, **given)
        assert_gaps_untouched(out)
        if residual is not None:
            assert torch.equal(given["residual"], normed)
            assert_gaps_untouched(given["residual"])
        results.append(out)
    assert torch.equal(*results), "depends on which thread is first"
    if x.numel():
        plain = torch.nn.functional.rms_norm(normed, (shape[1],), weight.to(dtype), 1e-5)
        assert_close(results[0], reference.rms_norm(normed, weight, 1e-5), plain)


@pytest.mark.parametrize("hidden_size", [128, 576, 4096, 20000])
def test_rms_norm_does_not_depend_on_the_batch(client, hidden_size):
    x = padded((9, hidden_size), 0, torch.bfloat16)
    weight = padded((hidden_size,), 0, torch.bfloat16)
    batch, one, unaligned = blank(x.shape, 0, x.dtype), blank((1, hidden_size), 0, x.dtype), None
    client.call("rms_norm", eps=1e-6, x=x, weight=weight, out=batch)
    for row in (0, 1, 8):
        client.call("rms_norm", eps=1e-6, x=x[row : row + 1], weight=weight, out=one)
        assert torch.equal(one[0], batch[row])
    unaligned = torch.empty(9, hidden_size + 1, dtype=x.dtype)[:, 1:].copy_(x)
    out = blank(x.shape, 0, x.dtype)
    client.call("rms_norm", eps=1e-6, x=unaligned, weight=weight, out=out)
    assert torch.equal(out, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pad", [0, 3, 16])
@pytest.mark.parametrize(
    ("op", "tanh", "shape"),
    [
        *(("silu_mul", False, shape) for shape in ROWS),
        *((op, tanh, shape) for op in ("gelu_mul", "gelu") for tanh in (False, True)
          for shape in ((0, 64), (3, 5), (4, 576), (7, 1003))),
    ],
    ids=str,
)  # fmt: skip
def test_activation(client, dtype, op, tanh, shape, pad):
    num_tokens, size = min(shape[0], 6), shape[1]
    gated = op != "gelu"
    x = padded((num_tokens, size * (1 + gated)), pad, dtype).mul_(6)
    if size > 16 and num_tokens:
        x[0, :6] = torch.tensor([-0.0, 100.0, -100.0, 1e-20, 3e4, -3e4])
    out = blank((num_tokens, size), pad, dtype)
    client.call(op, x=x, out=out, **({} if op == "silu_mul" else {"tanh": tanh}))
    assert_gaps_untouched(out)
    if out.numel() == 0:
        return
    act = reference.silu(x[:, :size]) if op == "silu_mul" else reference.gelu(x[:, :size], tanh)
    up = x[:, size:].double() if gated else torch.ones_like(act)
    # Relative, what exp, reciprocal and two products may be off by; gelu: of 1 + erf, absolute.
    floor = (6e-7 * act.abs() if op == "silu_mul" else 3e-7 * x[:, :size].double().abs()) * up.abs()
    assert_close(out, act * up, floor=floor + 1e-37)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft_cap", [0.0, 30.0])
def test_scale(client, dtype, soft_cap):
    x = padded((3, 1003), 3, dtype).mul_(20)
    out = blank((3, 1003), 3, dtype)
    client.call("scale", x=x, out=out, factor=0.75, soft_cap=soft_cap)
    assert_gaps_untouched(out)
    assert_close(out, reference.scale(x, 0.75, soft_cap or None), floor=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_by_position(client, dtype):
    x = padded((3, 1003), 3, dtype).mul_(20)
    out = blank((3, 1003), 3, dtype)
    positions = torch.tensor([7, 8, 1 << 24])
    client.call("scale_by_position", x=x, positions=positions, out=out, beta=0.1, length=8)
    assert_gaps_untouched(out)
    expected = reference.scale_by_position(x, positions, 0.1, 8)
    assert_close(out, expected, floor=1e-6 * expected.abs())


IDS = [0, 22, 7, 7, -1, 23, 16, 15, -(2**31), 2**31 - 1]  # of a vocabulary of 23


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "table", [torch.float32, torch.bfloat16, torch.float16, *CUDA_FORMATS], ids=str
)
@pytest.mark.parametrize(("hidden_size", "pad"), [(32, 0), (64, 3), (2112, 8), (7, 0), (1003, 1)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_embedding(client, dtype, table, hidden_size, pad, accumulate):
    """The bits of the CPU op; zeros for ids out of range, or nothing added."""
    if isinstance(table, str):
        if hidden_size % 32:
            return
        hidden_size = whole_blocks(hidden_size, table)
    token_ids = torch.tensor(IDS, dtype=torch.int64 if pad else torch.int32)
    inside = (token_ids >= 0) & (token_ids < 23)
    out = blank((len(IDS), hidden_size), pad, dtype)
    before = padded((len(IDS), hidden_size), 0, dtype)
    if accumulate:
        out.copy_(before)
    given = {"accumulate": True, "out": before[inside]} if accumulate else {"dtype": dtype}
    if isinstance(table, str):
        generator = torch.Generator().manual_seed(hidden_size)
        packed = ops.pack_weight(random_blocks(23, hidden_size, table, generator), table)
        expected = ops.embedding(token_ids[inside], packed, **given)
        number = ops.weight_formats().index(table)
        client.call(
            "embedding_packed", token_ids=token_ids, table=packed.data, out=out, format=number,
            vocab_size=23, accumulate=accumulate,
        )  # fmt: skip
    else:
        dense = padded((23, hidden_size), pad, table)
        expected = ops.embedding(token_ids[inside], dense, **given)
        client.call("embedding", token_ids=token_ids, table=dense, out=out, accumulate=accumulate)
    assert_gaps_untouched(out)
    assert torch.equal(out[inside], expected)
    assert torch.equal(out[~inside], before[~inside] * accumulate)


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("shape", [s for s in ROWS if s[1] < 30000], ids=str)
@pytest.mark.parametrize(("pad", "with_options"), [(0, False), (0, True), (3, True)])
def test_layer_norm(client, dtype, weight_dtype, shape, pad, with_options):
    shape = (min(shape[0], 5), shape[1])
    x = (padded(shape, pad, torch.float32) + 3).to(dtype)
    weight, bias = padded((2, shape[1]), 0, weight_dtype)
    residual = padded(shape, pad, dtype).flip(0)
    normed = x + residual if with_options else x
    results = []
    for order in ("forward", "backward"):
        out = blank(shape, pad, dtype)
        given = {"x": x, "weight": weight.clone(), "out": out}
        if with_options:
            given |= {"bias": bias.clone(), "residual": blank(shape, pad, dtype).copy_(residual)}
        client.call("layer_norm", eps=1e-5, order=order, **given)
        assert_gaps_untouched(out)
        if with_options:
            assert torch.equal(given["residual"], normed)
            assert_gaps_untouched(given["residual"])
        results.append(out)
    assert torch.equal(*results), "depends on which thread is first"
    if x.numel():
        used = bias if with_options else None
        plain = torch.nn.functional.layer_norm(
            normed, (shape[1],), weight.to(dtype), None if used is None else used.to(dtype), 1e-5
        )
        assert_close(results[0], reference.layer_norm(normed, weight, used, 1e-5), plain)


@pytest.mark.parametrize("hidden_size", [128, 576, 4096])
def test_layer_norm_does_not_depend_on_the_batch(client, hidden_size):
    x = padded((5, hidden_size), 0, torch.bfloat16)
    weight = padded((hidden_size,), 0, torch.bfloat16)
    batch, one = blank(x.shape, 0, x.dtype), blank((1, hidden_size), 0, x.dtype)
    client.call("layer_norm", eps=1e-6, x=x, weight=weight, out=batch)
    for row in (0, 4):
        client.call("layer_norm", eps=1e-6, x=x[row : row + 1], weight=weight, out=one)
        assert torch.equal(one[0], batch[row])
    unaligned = torch.empty(5, hidden_size + 1, dtype=x.dtype)[:, 1:].copy_(x)
    out = blank(x.shape, 0, x.dtype)
    client.call("layer_norm", eps=1e-6, x=unaligned, weight=weight, out=out)
    assert torch.equal(out, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", MERGES, ids=str)
@pytest.mark.parametrize("pad", [0, 3, 8])
@pytest.mark.parametrize("with_lse", [False, True])
def test_merge_states(client, dtype, size, pad, with_lse):
    num_splits, num_tokens, num_heads, _ = size
    partial = padded(size, pad, torch.float32)
    lse_partial = padded(size[:3], pad, torch.float32) * 20
    if num_splits and num_tokens > 1:
        lse_partial[0, 0] = -torch.inf  # not read: may be anything
        partial[0, 0] = torch.nan
        lse_partial[:, 1] = -torch.inf
    out = blank(size[1:], pad, dtype)
    lse = blank((num_tokens, num_heads), pad, torch.float32)
    given = {"lse": lse} if with_lse else {}
    client.call("merge_states", out_partial=partial, lse_partial=lse_partial, out=out, **given)
    if num_tokens == 0:
        return
    assert_gaps_untouched(out.flatten(0, 1))
    expected, expected_lse = reference.merge_states(partial, lse_partial)
    assert_close(out, expected, floor=1e-6 * num_splits)
    finite = expected_lse != -torch.inf
    assert not out[~finite].any()
    if with_lse:
        assert_gaps_untouched(lse)
        if finite.any():
            assert_close(lse[finite], expected_lse[finite], floor=1e-6)
        assert (lse[~finite] == -torch.inf).all()
