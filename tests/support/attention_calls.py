# SPDX-License-Identifier: Apache-2.0
"""Calls of paged_attention's kernels on the CPU."""

from __future__ import annotations

from typing import Any

import paging
import torch
from attention_inputs import cumulative
from cases import Heads
from compare import SENTINEL

from cuda_on_cpu.client import Client


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


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same in a wider buffer, so that no two tensors have their strides in common."""
    wider = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 16, dtype=tensor.dtype)
    return wider[..., :-16].copy_(tensor)


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
    lse = apart(torch.full(q.shape[:2], SENTINEL))
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
        "page_table": apart(pages.page_table),
        "seq_lens": pages.seq_lens,
        "cu_seqlens_q": query if isinstance(query, torch.Tensor) else cumulative(query),
        "lse": lse,
        "out": out,
        "workspace": options.get("workspace", torch.full((size,), 0xFF, dtype=torch.uint8)),
        "k_scale": pages.k_scale,
        "v_scale": None if pages.v_scale is None else apart(pages.v_scale),
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
        planned=int(options.get("planned", False)),
        wgmma=int(options.get("wgmma", False)),
        **{name: tensor for name, tensor in tensors.items() if tensor is not None},
    )
    return out, lse
