# SPDX-License-Identifier: Apache-2.0
"""Inputs and a peer for the tests of attention, on every device."""

from __future__ import annotations

import torch
from cases import Heads


def cumulative(lens: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32)


def random_q(
    num_tokens: int, heads: Heads, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    """Queries as a part of a wider buffer."""
    shape = (num_tokens, heads.num_qo_heads + 2, heads.head_dim)
    return torch.randn(shape, generator=generator).to(dtype)[:, 1:-1]


def plain_attention(q, k, v, scale, causal, sliding_window, soft_cap, sinks):
    """Attention in plain PyTorch, in q's dtype."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.to(q.dtype).repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ k.transpose(1, 2) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    key = torch.arange(k.shape[1])
    query = torch.arange(len(q))[:, None] + k.shape[1] - len(q)
    hidden = torch.zeros(len(q), k.shape[1], dtype=torch.bool)
    if causal:
        hidden |= key > query
    if sliding_window is not None:
        hidden |= key <= query - sliding_window
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        column = sinks.to(q.dtype)[:, None, None].expand(-1, len(q), 1)
        return (torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v).transpose(0, 1)
    return (scores.softmax(-1) @ v).transpose(0, 1)
