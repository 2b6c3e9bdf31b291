# SPDX-License-Identifier: Apache-2.0
"""Paged caches for tests: shuffled pages, NaN in unused slots, garbage in unused table entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SCALE_LIMIT = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SLACK_PAGES = 3  # pages of the pool that belong to no sequence
GARBAGE_ENTRIES = 2  # columns of the page table beyond what the longest sequence needs


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """NaN, or the most negative value where the type has none."""
    if dtype == torch.int8:
        return torch.full(shape, -128, dtype=dtype)
    return torch.full(shape, torch.nan).to(dtype)


def quantize(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., head_dim] as codes with one scale per vector: largest magnitude / the type's."""
    limit = SCALE_LIMIT[dtype]
    scale = x.abs().amax(-1) / limit
    scaled = x * torch.where(scale > 0, 1 / scale, 0.0)[..., None]
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale


@dataclass
class Pages:
    """A cache and the contents of its sequences, dense and as stored."""

    k_cache: torch.Tensor  # [num_pages, num_kv_heads, page_size, head_dim]
    v_cache: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None
    page_table: torch.Tensor
    seq_lens: torch.Tensor
    k: list[torch.Tensor]  # per sequence [seq_len, num_kv_heads, head_dim] float32, dequantized
    v: list[torch.Tensor]

    def slots(self, seq: int, begin: int, end: int) -> torch.Tensor:
        """Slots of the tokens [begin, end) of a sequence."""
        page_size = self.k_cache.shape[2]
        token = torch.arange(begin, end)
        return self.page_table[seq, token // page_size].long() * page_size + token % page_size


def allocate(
    num_pages: int,
    num_kv_heads: int,
    page_size: int,
    head_dim: int,
    dtype: torch.dtype,
    tokens_first: bool = False,
) -> torch.Tensor:
    """A poisoned cache; tokens_first: stored [page, slot, head, head_dim], seen transposed."""
    if tokens_first:
        return poisoned((num_pages, page_size, num_kv_heads, head_dim), dtype).transpose(1, 2)
    return poisoned((num_pages, num_kv_heads, page_size, head_dim), dtype)


def build(
    seq_lens: list[int],
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    tokens_first: bool = False,
    with_scales: bool | None = None,
) -> Pages:
    """Random K and V of the given lengths in shuffled pages. int8 always has scales."""
    with_scales = dtype == torch.int8 if with_scales is None else with_scales
    counts = [-(-n // page_size) for n in seq_lens]
    num_pages = sum(counts) + SLACK_PAGES
    free = torch.randperm(num_pages, generator=generator).to(torch.int32)
    page_table = torch.randint(
        num_pages,
        2**31 - 1,
        (len(seq_lens), max([*counts, 0]) + GARBAGE_ENTRIES),
        dtype=torch.int32,
    )
    page_table[:, 1::2] *= -1
    start = 0
    for seq, count in enumerate(counts):
        page_table[seq, :count] = free[start : start + count]
        start += count
    layout = (num_pages, num_kv_heads, page_size)
    caches, scales, dense = [], [], []
    for _ in range(2):
        cache = allocate(*layout, head_dim, dtype, tokens_first)
        scale = torch.full(layout, torch.nan) if with_scales else None
        contents = []
        for seq, seq_len in enumerate(seq_lens):
            x = torch.randn(seq_len, num_kv_heads, head_dim, generator=generator)
            token = torch.arange(seq_len)
            page, slot = page_table[seq, token // page_size].long(), token % page_size
            if scale is not None:
                codes, token_scale = quantize(x, dtype)
                scale[page, :, slot] = token_scale
                contents.append(codes.float() * token_scale[..., None])
            else:
                codes = x.to(dtype)
                contents.append(codes.float())
            cache.view(_bits(dtype))[page, :, slot] = codes.view(_bits(dtype))
        caches.append(cache)
        scales.append(scale)
        dense.append(contents)
    lens = torch.tensor(seq_lens, dtype=torch.int32)
    return Pages(*caches, *scales, page_table, lens, *dense)


def poison_before_window(pages: Pages, query: list[int], window: int) -> list[tuple[int, int]]:
    """Poisons the pages entirely before the first key that any query of a sequence sees.

    Returns their (sequence, entry) in the page table, which still contains them.
    """
    page_size = pages.k_cache.shape[2]
    freed = []
    for seq, num_tokens in enumerate(query):
        first_key = int(pages.seq_lens[seq]) - num_tokens - window + 1
        freed += [(seq, entry) for entry in range(max(first_key, 0) // page_size)]
    for seq, entry in freed:
        page = int(pages.page_table[seq, entry])
        for cache, scale in ((pages.k_cache, pages.k_scale), (pages.v_cache, pages.v_scale)):
            cache[page] = poisoned(tuple(cache.shape[1:]), cache.dtype)
            if scale is not None:
                scale[page] = torch.nan
    return freed


def _bits(dtype: torch.dtype) -> torch.dtype:
    """The integer type for indexed assignment of bytes, which float8 lacks."""
    return torch.uint8 if dtype == torch.float8_e4m3fn else dtype
