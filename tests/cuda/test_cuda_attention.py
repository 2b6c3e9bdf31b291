# SPDX-License-Identifier: Apache-2.0
"""paged_attention on a GPU, against the float64 reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import paging
import pytest
import torch
from attention_inputs import cumulative, random_q
from cases import MODEL_HEADS, PAGED_SHAPES, Heads, page_edges, query_lens
from cuda_attention import check

from lampo import ops

pytestmark = pytest.mark.gpu

LLAMA = MODEL_HEADS["Llama-3-8B"]


def attend(
    gpu: torch.device, q: torch.Tensor, pages: paging.Pages, query: list[int], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op on outputs full of NaN and a workspace of garbage, of just the right size."""
    out = torch.full(q.shape, torch.nan, dtype=q.dtype, device=gpu)
    lse = torch.full(q.shape[:2], torch.nan, device=gpu)
    size = ops.paged_attention_workspace_size(
        q.shape[1],
        pages.k_cache.shape[1],
        q.shape[2],
        0,
        batch_size=len(pages.seq_lens),
        num_tokens=len(q),
        deterministic=options.get("deterministic", False),
        device=gpu,
    )
    guarded = torch.full((size + 256,), 0xFF, dtype=torch.uint8, device=gpu)
    optional = {
        "k_scale": pages.k_scale,
        "v_scale": pages.v_scale,
        "sinks": options.pop("sinks", None),
    }
    ops.paged_attention(
        q.to(gpu),
        pages.k_cache.to(gpu),
        pages.v_cache.to(gpu),
        pages.page_table.to(gpu),
        pages.seq_lens.to(gpu),
        cumulative(query).to(gpu),
        lse=lse,
        out=out,
        workspace=guarded[:size],
        **{name: None if t is None else t.to(gpu) for name, t in optional.items()},
        **options,
    )
    assert bool((guarded[size:] == 0xFF).all()), "wrote past the workspace"
    return out, lse


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "page_size"), PAGED_SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["prefill", "decode", "chunk", "mixed"])
def test_shapes(gpu, generator, dtype, heads, page_size, kind, deterministic):
    seq_lens = page_edges(page_size, longest=700)
    query = query_lens(kind, seq_lens)
    pages = paging.build(
        seq_lens, heads.num_kv_heads, heads.head_dim, page_size, dtype, generator,
        tokens_first=page_size == 16,
    )  # fmt: skip
    q = random_q(sum(query), heads, dtype, generator)
    out, lse = attend(gpu, q, pages, query, deterministic=deterministic)
    check(q, pages, query, out, lse)


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [Heads(6, 2, 64), Heads(4, 1, 80), Heads(2, 1, 256)], ids=str)
@pytest.mark.parametrize("query", [[1, 1, 1], [70, 333, 1]], ids=["decode", "mixed"])
def test_cache_dtypes(gpu, generator, dtype, cache_dtype, heads, query):
    pages = paging.build(
        [70, 1280, 1], heads.num_kv_heads, heads.head_dim, 16, cache_dtype, generator,
        with_scales=cache_dtype.itemsize == 1,
    )  # fmt: skip
    q = random_q(sum(query), heads, dtype, generator)
    out, lse = attend(gpu, q, pages, query)
    check(q, pages, query, out, lse)


@pytest.mark.parametrize(
    "options",
    [
        {"softmax_scale": -0.3},
        {"softmax_scale": 0.0},
        {"causal": False},
        {"sliding_window": 70},
        {"soft_cap": 3.0},
        {"sinks": "sinks"},
        {"sliding_window": 333, "soft_cap": 2.0, "sinks": "sinks", "softmax_scale": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "query",
    [[1, 1, 1], pytest.param([900, 300, 5], marks=pytest.mark.real_gpu)],
    ids=["decode", "prefill"],
)
def test_options(gpu, generator, options, query):
    if "sinks" in options:
        options = options | {"sinks": torch.randn(32, generator=generator) * 2}
    pages = paging.build([900, 5000, 5], 8, 128, 16, torch.bfloat16, generator)
    q = random_q(sum(query), LLAMA, torch.bfloat16, generator)
    out, lse = attend(gpu, q, pages, query, **options)
    check(q, pages, query, out, lse, **options)


@pytest.mark.parametrize(
    ("heads", "page_size", "dtype"),
    [
        (Heads(8, 2, 128), 16, torch.bfloat16),
        (Heads(7, 1, 64), 64, torch.bfloat16),
        (Heads(4, 2, 80), 8, torch.float16),
    ],
    ids=str,
)
def test_wgmma(gpu, generator, monkeypatch, heads, page_size, dtype):
    """The kernel for Hopper, elsewhere mma.sync: prompts, a chunk after a prefix, a captured call,
    and the same bits again."""
    monkeypatch.setenv("LAMPO_CUDA_ATTENTION", "wgmma")
    query = [150, 20, 1]
    pages = paging.build(
        [150, 300, 70], heads.num_kv_heads, heads.head_dim, page_size, dtype, generator
    )
    q = random_q(sum(query), heads, dtype, generator)
    for options in ({}, {"sliding_window": 100, "soft_cap": 3.0}):
        out, lse = attend(gpu, q, pages, query, **options)
        check(q, pages, query, out, lse, **options)
    out = torch.empty(q.shape, dtype=dtype, device=gpu)
    tensors = [q, pages.k_cache, pages.v_cache, pages.page_table, pages.seq_lens, cumulative(query)]
    on_gpu = [tensor.to(gpu) for tensor in tensors]
    expected = ops.paged_attention(*on_gpu).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.paged_attention(*on_gpu, out=out)
    for _ in range(3):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.real_gpu
def test_same_call_same_bits(gpu, generator):
    pages = paging.build([9000, 70, 1300], 8, 128, 16, torch.bfloat16, generator)
    q = random_q(3, LLAMA, torch.bfloat16, generator)
    first, lse = attend(gpu, q, pages, [1, 1, 1])
    check(q, pages, [1, 1, 1], first, lse)
    for _ in range(20):
        assert torch.equal(attend(gpu, q, pages, [1, 1, 1])[0], first)


@pytest.mark.real_gpu
def test_deterministic_bits_do_not_depend_on_company(gpu, generator):
    pages = paging.build([9000, 70], 8, 128, 16, torch.bfloat16, generator)
    query = [300, 70]
    q = random_q(sum(query), LLAMA, torch.bfloat16, generator)
    whole, whole_lse = attend(gpu, q, pages, query, deterministic=True)
    for begin, end in [(0, 300), (0, 1), (0, 33), (33, 300), (299, 300)]:
        lens = torch.tensor([8700 + end], dtype=torch.int32)
        one = dataclasses.replace(pages, page_table=pages.page_table[:1], seq_lens=lens)
        out, lse = attend(gpu, q[begin:end], one, [end - begin], deterministic=True)
        assert torch.equal(out, whole[begin:end]) and torch.equal(lse, whole_lse[begin:end])


def test_captured_call_takes_other_lengths(gpu, generator):
    pages = paging.build([4000, 4000], 8, 128, 16, torch.bfloat16, generator)
    q = random_q(2, LLAMA, torch.bfloat16, generator)
    on_gpu = {
        "q": q.to(gpu),
        "k_cache": pages.k_cache.to(gpu),
        "v_cache": pages.v_cache.to(gpu),
        "page_table": pages.page_table.to(gpu),
        "seq_lens": pages.seq_lens.to(gpu),
        "cu_seqlens_q": cumulative([1, 1]).to(gpu),
        "out": torch.empty(q.shape, dtype=q.dtype, device=gpu),
        "lse": torch.empty(q.shape[:2], device=gpu),
    }
    ops.paged_attention(**on_gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.paged_attention(**on_gpu)
    for lens in ([4000, 4000], [1, 3999], [0, 70], [2500, 0]):
        on_gpu["seq_lens"].copy_(torch.tensor(lens, dtype=torch.int32))
        graph.replay()
        now = dataclasses.replace(
            pages,
            k=[k[:n] for k, n in zip(pages.k, lens, strict=True)],
            v=[v[:n] for v, n in zip(pages.v, lens, strict=True)],
        )
        check(q, now, [1, 1], on_gpu["out"], on_gpu["lse"])


def test_offsets_beyond_32_bits(gpu, generator):
    """Pages so far apart that offsets in elements do not fit 32 bits."""
    stride = 2**31 // 3
    pages = paging.build([50], 1, 64, 16, torch.bfloat16, generator)
    count = len(pages.k_cache)
    assert (count - 1) * stride > 2**31
    if torch.cuda.mem_get_info(gpu)[0] < (2 * count * stride) + (1 << 30):
        pytest.skip("not enough free GPU memory")
    q = random_q(1, Heads(2, 1, 64), torch.bfloat16, generator)
    buffer = torch.empty((count - 1) * stride + 2 * 16 * 64, dtype=torch.bfloat16, device=gpu)
    far = dataclasses.replace(pages)
    for name, offset in (("k_cache", 0), ("v_cache", 16 * 64)):
        near = getattr(pages, name)
        view = buffer[offset:].as_strided(near.shape, (stride, 16 * 64, 64, 1))
        setattr(far, name, view.copy_(near))
    out, lse = attend(gpu, q, far, [1])
    check(q, pages, [1], out, lse)
