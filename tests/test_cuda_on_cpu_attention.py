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
    """The op on outputs full of sentinels and a workspace of garbage, of just the right size."""
    out = torch.full(q.shape, SENTINEL, dtype=q.dtype)
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
