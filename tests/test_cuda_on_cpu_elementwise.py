# SPDX-License-Identifier: Apache-2.0
"""Norms, activations and their like of csrc/cuda/ on the CPU, under sanitizers. No GPU needed."""

from __future__ import annotations

import pytest
import torch

import reference
from cases import MERGES, ROWS
from compare import assert_close
from cuda_on_cpu.fixtures import assert_gaps_untouched, blank, padded

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
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("pad", [0, 3, 16])
def test_silu_mul(client, dtype, shape, pad):
    num_tokens, size = min(shape[0], 6), shape[1]
    x = padded((num_tokens, 2 * size), pad, dtype).mul_(6)
    out = blank((num_tokens, size), pad, dtype)
    client.call("silu_mul", x=x, out=out)
    assert_gaps_untouched(out)
    if out.numel():
        # 6e-7: what exp, reciprocal and two products may be off by, relative.
        expected = reference.silu(x[:, :size]) * x[:, size:].double()
        assert_close(out, expected, floor=6e-7 * float(expected.abs().max()))


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
