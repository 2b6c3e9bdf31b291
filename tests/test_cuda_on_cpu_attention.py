# SPDX-License-Identifier: Apache-2.0
"""paged_attention of csrc/cuda/ on the CPU, under sanitizers. No GPU needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import paging
import reference
from attention_inputs import cumulative, random_q
from cases import PAGED_SHAPES, Heads, page_edges, query_lens
from compare import SENTINEL, assert_close
from cuda_attention import check
from cuda_on_cpu.client import Client

SMALL = Heads(6, 2, 64)


def workspace_size(client: Client, heads: Heads, **numbers: int) -> int:
    size = torch.zeros(1, dtype=torch.int64)
    client.call(
        "paged_attention_workspace_size",
        size=size,
        num_qo_heads=heads.num_qo_heads,
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        **numbers,
    )
    return int(size)


def attend(
    client: Client,
    q: torch.Tensor,
    pages: paging.Pages,
    query: list[int] | torch.Tensor,
    *,
    order: str = "forward",
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op on outputs full of NaN and a workspace of garbage, of just the right size."""
    out = torch.full(q.shape, torch.nan, dtype=q.dtype)
    lse = torch.full(q.shape[:2], SENTINEL)
    heads = Heads(q.shape[1], pages.k_cache.shape[1], q.shape[2])
    deterministic = int(options.get("deterministic", False))
    size = workspace_size(
        client,
        heads,
        batch_size=len(pages.seq_lens),
        num_tokens=len(q),
        deterministic=deterministic,
    )
    tensors = {
        "q": q,
        "k_cache": pages.k_cache,
        "v_cache": pages.v_cache,
        "page_table": pages.page_table,
        "seq_lens": pages.seq_lens,
        "cu_seqlens_q": query if isinstance(query, torch.Tensor) else cumulative(query),
        "lse": lse,
        "out": out,
        "workspace": torch.full((size,), 0xFF, dtype=torch.uint8),
        "k_scale": pages.k_scale,
        "v_scale": pages.v_scale,
        "sinks": options.get("sinks"),
    }
    client.call(
        "paged_attention",
        order=order,
        softmax_scale=options.get("softmax_scale", q.shape[-1] ** -0.5),
        causal=int(options.get("causal", True)),
        sliding_window=options.get("sliding_window") or 0,
        soft_cap=options.get("soft_cap") or 0.0,
        deterministic=deterministic,
        **{name: tensor for name, tensor in tensors.items() if tensor is not None},
    )
    return out, lse


@pytest.mark.parametrize(("heads", "page_size"), PAGED_SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["prefill", "decode", "mixed"])
def test_shapes(client, generator, heads, page_size, kind):
    seq_lens = page_edges(min(page_size, 33), longest=70)
    query = query_lens(kind, seq_lens)
    pages = paging.build(
        seq_lens, heads.num_kv_heads, heads.head_dim, page_size, torch.bfloat16, generator,
        tokens_first=page_size == 16,
    )  # fmt: skip
    q = random_q(sum(query), heads, torch.bfloat16, generator)
    out, lse = attend(client, q, pages, query)
    check(q, pages, query, out, lse)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "with_scales"),
    [
        (torch.bfloat16, torch.int8, True),
        (torch.bfloat16, torch.float8_e4m3fn, True),
        (torch.bfloat16, torch.float8_e4m3fn, False),
        (torch.float16, torch.float16, False),
        # Converted when they are copied.
        (torch.bfloat16, torch.float16, False),
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.bfloat16, False),
        (torch.float16, torch.int8, True),
        (torch.float16, torch.float8_e4m3fn, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("heads", [SMALL, Heads(4, 1, 80), Heads(2, 1, 256)], ids=str)
@pytest.mark.parametrize("query", [[1, 1, 1], [1, 33, 1]], ids=["decode", "mixed"])
def test_cache_dtypes(client, generator, dtype, cache_dtype, with_scales, heads, query):
    seq_lens = [40, 75, 1]
    pages = paging.build(
        seq_lens, heads.num_kv_heads, heads.head_dim, 16, cache_dtype, generator,
        with_scales=with_scales,
    )  # fmt: skip
    q = random_q(sum(query), heads, dtype, generator)
    out, lse = attend(client, q, pages, query)
    check(q, pages, query, out, lse)


@pytest.mark.parametrize(
    "options",
    [
        {"softmax_scale": 0.3},
        {"softmax_scale": -0.3},
        {"softmax_scale": 0.0},
        {"causal": False},
        {"sliding_window": 1},
        {"sliding_window": 40},
        {"sliding_window": 2**31 - 1},
        {"soft_cap": 3.0},
        {"sinks": "sinks"},
        {"sliding_window": 33, "soft_cap": 2.0, "sinks": "sinks", "softmax_scale": -0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("query", [[1, 1, 1], [100, 20, 5]], ids=["decode", "prefill"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_options(client, generator, options, query, deterministic):
    if "sinks" in options:
        options = options | {"sinks": torch.randn(6, generator=generator) * 2}
    pages = paging.build([100, 150, 5], 2, 64, 16, torch.bfloat16, generator)
    q = random_q(sum(query), SMALL, torch.bfloat16, generator)
    out, lse = attend(client, q, pages, query, deterministic=deterministic, **options)
    check(q, pages, query, out, lse, **options)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("group_size", [2, 9])
def test_padding_and_rows_without_keys(client, generator, group_size, deterministic):
    """More queries than tokens (the first see nothing), an empty sequence, padding at the end."""
    heads = Heads(2 * group_size, 2, 32)
    pages = paging.build([3, 0], 2, 32, 4, torch.bfloat16, generator)
    q = random_q(11, heads, torch.bfloat16, generator)
    sinks = torch.randn(heads.num_qo_heads, generator=generator)
    out, lse = attend(client, q, pages, [5, 2], sinks=sinks, deterministic=deterministic)
    empty = torch.ones(11, dtype=torch.bool)
    empty[2:5] = False
    assert bool((out[empty] == 0).all()) and bool((lse[empty] == -torch.inf).all())
    expected, expected_lse = reference.attention(
        q[2:5], pages.k[0], pages.v[0], 32**-0.5, sinks=sinks
    )
    assert_close(out[2:5], expected, floor=0.03)
    assert_close(lse[2:5], expected_lse, floor=4e-6)


def test_no_tokens(client, generator):
    pages = paging.build([9], 1, 32, 4, torch.bfloat16, generator)
    out, _ = attend(client, torch.zeros(0, 2, 32, dtype=torch.bfloat16), pages, [0])
    assert out.shape == (0, 2, 32)
    none = paging.build([], 1, 32, 4, torch.bfloat16, generator)
    out, lse = attend(client, torch.ones(2, 2, 32, dtype=torch.bfloat16), none, [])
    assert not out.any() and bool((lse == -torch.inf).all())


@pytest.mark.parametrize("pad", [1, 3, 8])
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8], ids=str)
def test_unaligned_rows(client, generator, pad, cache_dtype):
    """Rows of q, K, V and out that no vector of 16 bytes may touch."""
    pages = paging.build([50, 20], 2, 64, 16, cache_dtype, generator)
    for name in ("k_cache", "v_cache"):
        cache = getattr(pages, name)
        wider = torch.zeros(*cache.shape[:-1], 64 + pad, dtype=cache.dtype)[..., pad:]
        setattr(pages, name, wider.copy_(cache))
    q = random_q(6, SMALL, torch.bfloat16, generator)
    q = torch.zeros(6, 6, 64 + pad, dtype=q.dtype)[..., pad:].copy_(q)
    out, lse = attend(client, q, pages, [5, 1])
    check(q, pages, [5, 1], out, lse)


@pytest.mark.parametrize("query", [[1, 1], [20, 3]], ids=["decode", "prefill"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_lengths_and_pages_out_of_range(client, generator, query, deterministic):
    """Undefined results, but no access outside of a tensor, and an end."""
    pages = paging.build([40, 17], 2, 64, 16, torch.bfloat16, generator)
    q = random_q(sum(query), SMALL, torch.bfloat16, generator)
    huge = 2**31 - 1
    wrong = {
        "page_table": [torch.full_like(pages.page_table, page) for page in (huge, -huge, -1)],
        "seq_lens": [torch.tensor(lens, dtype=torch.int32) for lens in ([-5, -huge], [0, huge])],
    }
    for name, values in wrong.items():
        right = getattr(pages, name)
        for value in values:
            setattr(pages, name, value)
            attend(client, q, pages, query, deterministic=deterministic)
        setattr(pages, name, right)
    for starts in ([0, huge, 3], [5, 2, 9], [-huge, huge, -1], [huge, 0, huge], [0, -huge, 7]):
        cu_seqlens_q = torch.tensor(starts, dtype=torch.int32)
        attend(client, q, pages, cu_seqlens_q, deterministic=deterministic)
    pages.k_cache, pages.v_cache = pages.k_cache[:0], pages.v_cache[:0]
    out, lse = attend(client, q, pages, query, deterministic=deterministic)
    assert not out.any() and bool((lse == -torch.inf).all())
