# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import paging
import pytest
import torch
from cases import MERGES
from compare import SENTINEL, assert_close

from lampo import ops
from lampo.bench import reference

SIZES = [(1, 1, 1, 32), (3, 5, 4, 64), (7, 33, 3, 20), (2, 0, 4, 64), (2, 3, 2, 1000)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_merge(isa, generator, dtype, size):
    num_splits, num_tokens, num_heads, head_dim = size
    partial = torch.randn(num_splits, num_tokens, num_heads, head_dim + 3, generator=generator)
    partial = partial[..., :head_dim]
    lse_partial = torch.randn(num_splits, num_tokens, num_heads, generator=generator) * 20
    if num_tokens > 1:
        lse_partial[0, 0] = -torch.inf  # not read: may be anything
        partial[0, 0] = torch.nan
        lse_partial[:, 1] = -torch.inf
    out = torch.full((num_tokens, num_heads, head_dim), SENTINEL, dtype=dtype)
    lse = torch.full((num_tokens, num_heads), SENTINEL)
    result = ops.merge_states(partial, lse_partial, out=out, lse=lse)
    assert result[0] is out and result[1] is lse
    if num_tokens == 0:
        return
    expected, expected_lse = reference.merge_states(partial, lse_partial)
    assert_close(out, expected, floor=1e-6 * num_splits)
    finite = expected_lse != -torch.inf
    assert_close(lse[finite], expected_lse[finite], floor=1e-6)
    assert bool((lse[~finite] == -torch.inf).all()) and not out[~finite].any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("size", MERGES, ids=str)
def test_merge_on_gpu(gpu, generator, dtype, pad, size):
    partial = torch.randn(*size[:3], size[3] + pad, generator=generator)[..., : size[3]]
    lse_partial = torch.randn(*size[:3], generator=generator) * 20
    lse_partial[1:, ::2] = -torch.inf
    expected, expected_lse = reference.merge_states(partial, lse_partial)
    out = torch.full(size[1:], SENTINEL, dtype=dtype, device=gpu)
    backing = torch.empty(*size[:3], size[3] + pad, device=gpu)[..., : size[3]]
    _, lse = ops.merge_states(backing.copy_(partial), lse_partial.to(gpu), out=out)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=1e-6, atol=1e-6)
    if out.numel():
        assert_close(out.cpu(), expected, floor=1e-6 * size[0])


def test_parts_of_the_keys_merge_to_the_whole(isa, generator):
    """Attention over two halves of a cache, merged, is attention over all of it."""
    pages = paging.build([100], 2, 64, 16, torch.float32, generator)
    q = torch.randn(1, 6, 64, generator=generator)
    starts = torch.tensor([0, 1], dtype=torch.int32)
    outs, lses = [], []
    for table, seq_len in [
        (pages.page_table[:, :3].contiguous(), 48),
        (pages.page_table[:, 3:].contiguous(), 52),
        (pages.page_table, 100),
    ]:
        lse = torch.empty(1, 6)
        lens = torch.tensor([seq_len], dtype=torch.int32)
        caches = (pages.k_cache, pages.v_cache)
        outs.append(ops.paged_attention(q, *caches, table, lens, starts, lse=lse))
        lses.append(lse)
    out, lse = ops.merge_states(torch.stack(outs[:2]), torch.stack(lses[:2]))
    assert_close(out, outs[2].double(), floor=1e-6)
    assert_close(lse, lses[2].double(), floor=1e-6)


def test_no_splits(isa):
    out, lse = ops.merge_states(torch.empty(0, 2, 3, 32), torch.empty(0, 2, 3))
    assert not out.any() and bool((lse == -torch.inf).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_partial": torch.zeros(2, 3, 4)}, r"out_partial: expected shape \[\*, \*, \*, \*\]"),
        ({"out_partial": torch.zeros(2, 3, 4, 8).bfloat16()}, "out_partial: expected float32"),
        ({"lse_partial": torch.zeros(2, 3, 5)}, r"lse_partial: expected shape \[2, 3, 4\]"),
        ({"out": torch.zeros(3, 4, 9)}, r"out: expected shape \[3, 4, 8\], got \[3, 4, 9\]"),
        ({"out": torch.zeros(3, 4, 8).half()}, "out: expected float32 or bfloat16, got float16"),
        ({"lse": torch.zeros(4, 3).T[::1]}, "lse: expected a contiguous last dimension"),
    ],
)
def test_bad_arguments(change, message):
    given = {"out_partial": torch.zeros(2, 3, 4, 8), "lse_partial": torch.zeros(2, 3, 4)}
    with pytest.raises((ValueError, TypeError), match=message):
        ops.merge_states(**(given | change))


def test_opcheck(generator):
    partial = torch.randn(2, 3, 4, 8, generator=generator)
    lse_partial = torch.randn(2, 3, 4, generator=generator)
    torch.library.opcheck(
        torch.ops.lampo.merge_states.default,
        (partial, lse_partial, torch.zeros(3, 4, 8), torch.zeros(3, 4)),
    )
