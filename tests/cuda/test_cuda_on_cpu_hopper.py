# SPDX-License-Identifier: Apache-2.0
"""paged_attention's kernel for Hopper (csrc/cuda/attention/hopper_kernel.cuh) on the CPU, under
sanitizers. Copies by TMA, and products, happen as late as they may, or, in backward order, at
once."""

from __future__ import annotations

from typing import Any

import paging
import pytest
import torch
from attention_calls import apart, attend
from attention_inputs import random_q
from cases import Heads
from cuda_attention import check

from cuda_on_cpu.client import Client

pytestmark = pytest.mark.long

SMALL = Heads(6, 2, 64)
ORDERS = ("forward", "backward")


@pytest.fixture
def client(clients: dict[str, Client]) -> Client:
    """PTX of TMA and wgmma is not translated: always the executor."""
    return clients["both"]


def attend_both(
    client: Client, q: torch.Tensor, pages: paging.Pages, query: list[int], **options: Any
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The result with the kernel allowed, checked, and whether it was the one that ran: sums in
    another order have other last bits."""
    order = options.pop("order", "forward")
    out, lse = attend(client, q, pages, query, wgmma=True, order=order, **options)
    options.pop("deterministic", None)
    check(q, pages, query, out, lse, **options)
    other, _ = attend(client, q, pages, query, **options)
    return out, lse, not torch.equal(out, other)


@pytest.mark.parametrize(
    ("heads", "page_size", "dtype", "order"),
    [
        (Heads(2, 1, 128), 16, torch.bfloat16, "forward"),
        (Heads(2, 1, 128), 16, torch.bfloat16, "backward"),
        (Heads(4, 2, 128), 8, torch.float16, "backward"),
        (Heads(3, 1, 128), 128, torch.bfloat16, "backward"),
        (Heads(1, 1, 64), 32, torch.bfloat16, "forward"),
        (Heads(4, 1, 64), 64, torch.float16, "forward"),
        (Heads(5, 1, 80), 256, torch.bfloat16, "backward"),
        (Heads(7, 1, 32), 16, torch.bfloat16, "backward"),
        (Heads(8, 1, 64), 16, torch.bfloat16, "backward"),
    ],
    ids=str,
)
def test_shapes(client, generator, heads, page_size, dtype, order):
    """Prompts, a chunk after a prefix, a decoding sequence and an empty one."""
    seq_lens, query = [129, 150, 40, 0], [129, 20, 1, 0]
    if heads.group_size > 4:
        seq_lens, query = [60, 150, 40, 0], [60, 9, 1, 0]
    pages = paging.build(
        seq_lens, heads.num_kv_heads, heads.head_dim, page_size, dtype, generator,
        tokens_first=page_size == 16,
    )  # fmt: skip
    q = random_q(sum(query), heads, dtype, generator)
    _, _, used = attend_both(client, q, pages, query, order=order)
    assert used


@pytest.mark.parametrize("order", ORDERS)
def test_page_ids_out_of_range(client, generator, order):
    """Clamped: no access leaves the cache, and other sequences do not notice."""
    pages = paging.build([90, 70], 1, 64, 16, torch.bfloat16, generator)
    q = random_q(160, Heads(2, 1, 64), torch.bfloat16, generator)
    expected, _ = attend(client, q, pages, [90, 70], wgmma=True, order=order)
    pages.page_table[0] = torch.tensor([-1, 2**31 - 1] * 4)[: pages.page_table.shape[1]]
    out, _ = attend(client, q, pages, [90, 70], wgmma=True, order=order)
    assert torch.equal(out[90:], expected[90:])


@pytest.mark.parametrize(
    "options",
    [
        {"softmax_scale": -0.3},
        {"softmax_scale": 0.0},
        {"causal": False},
        {"sliding_window": 1},
        {"sliding_window": 140},
        {"soft_cap": 3.0},
        {"sinks": "sinks"},
        {"sliding_window": 33, "soft_cap": 2.0, "sinks": "sinks", "softmax_scale": -0.5},
    ],
    ids=str,
)
def test_options(client, generator, options):
    if "sinks" in options:
        options = options | {"sinks": torch.randn(6, generator=generator) * 2}
    query = [50, 20, 5]
    pages = paging.build([50, 200, 5], 2, 64, 16, torch.bfloat16, generator)
    q = random_q(sum(query), SMALL, torch.bfloat16, generator)
    attend_both(client, q, pages, query, order="backward", **options)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("window", [1, 70])
def test_pages_before_the_window_are_not_read(client, generator, window, order):
    """They may hold anything, NaN too, and so may their entries: a pool has given them away."""
    query = [9, 60]
    pages = paging.build([150, 330], 2, 64, 16, torch.bfloat16, generator)
    q = random_q(sum(query), SMALL, torch.bfloat16, generator)
    options = {"sliding_window": window, "wgmma": True, "order": order}
    expected = attend(client, q, pages, query, **options)
    freed = paging.poison_before_window(pages, query, window)
    for i, (seq, entry) in enumerate(freed):
        pages.page_table[seq, entry] = (-1, 2**31 - 1)[i % 2]
    out, lse = attend(client, q, pages, query, **options)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    check(q, pages, query, out, lse, sliding_window=window)


def test_bits_do_not_depend_on_pages(client, generator):
    """Page size, page numbers and strides of the cache."""
    k, v = torch.randn(2, 200, 2, 128, generator=generator).bfloat16()
    q = random_q(60, Heads(4, 2, 128), torch.bfloat16, generator)
    results = []
    for page_size, tokens_first in ((16, False), (64, True), (8, False)):
        pages = paging.build(
            [200], 2, 128, page_size, torch.bfloat16, generator, tokens_first=tokens_first
        )
        for cache, rows in ((pages.k_cache, k), (pages.v_cache, v)):
            for token in range(200):
                page = int(pages.page_table[0, token // page_size])
                cache[page, :, token % page_size] = rows[token]
        results.append(attend(client, q, pages, [60], wgmma=True))
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(lse, results[0][1])


@pytest.mark.parametrize("order", ORDERS)
def test_tiles_that_blocks_share(client, generator, order):
    """One sequence, cut into parts: merged in the order of its keys."""
    heads = Heads(4, 1, 64)
    pages = paging.build([1500], 1, 64, 16, torch.bfloat16, generator)
    q = random_q(30, heads, torch.bfloat16, generator)
    _, _, used = attend_both(client, q, pages, [30], order=order)
    assert used


def test_queries_without_keys_and_padding(client, generator):
    """More queries than keys, and tokens behind the last sequence: zeros and -inf."""
    pages = paging.build([5, 40], 2, 64, 16, torch.bfloat16, generator)
    q = random_q(50, SMALL, torch.bfloat16, generator)
    cu_seqlens = torch.tensor([0, 9, 47], dtype=torch.int32)
    out, lse = attend(client, q, pages, cu_seqlens, wgmma=True)
    check(q[:47], pages, [9, 38], out[:47], lse[:47])
    assert (out[47:] == 0).all() and (lse[47:] == -torch.inf).all()
    assert (out[:4] == 0).all() and (lse[:4] == -torch.inf).all()


def test_unaligned_queries(client, generator):
    heads = Heads(2, 1, 64)
    pages = paging.build([70], 1, 64, 16, torch.bfloat16, generator)
    wide = torch.randn(70, 2, 67, generator=generator).bfloat16()
    _, _, used = attend_both(client, wide[..., :64], pages, [70])
    assert used and heads.group_size == 2


@pytest.mark.parametrize(
    ("heads", "page_size", "cache_dtype", "options"),
    [
        (SMALL, 16, torch.float32, {}),
        (SMALL, 16, torch.int8, {}),
        (SMALL, 4, torch.bfloat16, {}),
        (Heads(2, 1, 256), 16, torch.bfloat16, {}),
        (SMALL, 16, torch.bfloat16, {"apart": 4}),
    ],
    ids=str,
)
def test_falls_back(client, generator, heads, page_size, cache_dtype, options):
    """What the kernel cannot do, mma.sync does: other caches, pages of fewer than 8 tokens, wide
    heads, rows that are not a multiple of 16 bytes apart."""
    pages = paging.build(
        [70], heads.num_kv_heads, heads.head_dim, page_size, cache_dtype, generator,
        with_scales=cache_dtype == torch.int8,
    )  # fmt: skip
    if "apart" in options:
        shape = (*pages.k_cache.shape[:-1], heads.head_dim + options["apart"])
        wide = torch.full(shape, torch.nan, dtype=cache_dtype)
        pages.k_cache = wide[..., : heads.head_dim].copy_(pages.k_cache)
    q = random_q(70, heads, torch.bfloat16, generator)
    _, _, used = attend_both(client, q, pages, [70])
    assert not used


def test_deterministic_calls_do_not_use_it(client, generator):
    """A row's bits must not depend on the kernel that its batch or its chunk gets."""
    pages = paging.build([90], 1, 64, 16, torch.bfloat16, generator)
    pages.k_cache = apart(pages.k_cache)
    q = random_q(90, Heads(2, 1, 64), torch.bfloat16, generator)
    out, _ = attend(client, q, pages, [90], deterministic=True, wgmma=True)
    expected, _ = attend(client, q, pages, [90], deterministic=True)
    assert torch.equal(out, expected)
    other, _ = attend(client, q, pages, [90], wgmma=True)
    assert not torch.equal(out, other)
