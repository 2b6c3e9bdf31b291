# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import paging
import pytest
import torch
from attention_inputs import cumulative, plain_attention, random_q
from cases import PAGED_SHAPES, Heads, page_edges, query_lens
from compare import SENTINEL, assert_close

from lampo import _C, ops
from lampo.bench import reference

DTYPES = [torch.float32, torch.bfloat16]
CACHES = [  # dtype, with scales
    (torch.float32, False),
    (torch.float16, False),
    (torch.bfloat16, False),
    (torch.float8_e4m3fn, False),
    (torch.float8_e4m3fn, True),
    (torch.int8, True),
]
SMOL = Heads(9, 3, 64)


def attend(
    q: torch.Tensor, pages: paging.Pages, query: list[int], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op, on outputs full of sentinels and a workspace of just the right size."""
    out = torch.full(q.shape, SENTINEL, dtype=q.dtype)
    lse = torch.full(q.shape[:2], SENTINEL)
    size = ops.paged_attention_workspace_size(
        q.shape[1],
        pages.k_cache.shape[1],
        q.shape[2],
        pages.page_table.shape[1] * pages.k_cache.shape[2],
    )
    guarded = torch.full((size + 256,), 0xFF, dtype=torch.uint8)
    result = ops.paged_attention(
        q,
        pages.k_cache,
        pages.v_cache,
        pages.page_table,
        pages.seq_lens,
        cumulative(query),
        k_scale=pages.k_scale,
        v_scale=pages.v_scale,
        lse=lse,
        out=out,
        workspace=guarded[:size],
        **options,
    )
    assert result is out
    assert bool((guarded[size:] == 0xFF).all()), "wrote past the workspace"
    return out, lse


def rounded_to_16_bits(q: torch.Tensor, cache_dtype: torch.dtype) -> torch.Tensor:
    """The queries as kernels take them that multiply pairs of 16-bit numbers (vec/pairs.h)."""
    if cache_dtype != torch.int8:
        return q.bfloat16()
    scale = q.double().abs().amax(-1, keepdim=True).clamp_min(1e-30) / 32767
    return (q.double() / scale).round() * scale


def sixteen_bit_error(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache_dtype: torch.dtype,
    scale: float,
    options: dict[str, Any],
) -> tuple[torch.Tensor | float, float]:
    """Tolerated additional error of out and lse by rounding queries and weights to 16 bits.

    Where the cache holds no more than 16 bits, AVX-512 kernels compute with BF16 numbers, or with
    16-bit integers if the cache does. The rounding of the queries is computed, and doubled for
    another rounding of the scores. A weight in BF16 is off by up to 2^-8 of itself; one in 16 bits
    by 2^-16 of the largest of 64, which random scores leave below 2^-12 of their mean.
    """
    if _C.cpu_isa() != "avx512" or cache_dtype in (torch.float32, torch.float16):
        return 0.0, 0.0
    out, lse = reference.attention(q, k, v, scale, **options)
    rounded = rounded_to_16_bits(q, cache_dtype)
    rounded_out, rounded_lse = reference.attention(rounded, k, v, scale, **options)
    magnitude, _ = reference.attention(q, k, v.abs(), scale, **options)
    weights = 2.0**-12 if cache_dtype == torch.int8 else 2.0**-8
    of_out = 2 * (rounded_out - out).abs().max() + weights * magnitude
    return of_out, 2 * float((rounded_lse - lse).abs().max())


def check_sequences(
    q: torch.Tensor,
    pages: paging.Pages,
    query: list[int],
    out: torch.Tensor,
    lse: torch.Tensor,
    **options: Any,
) -> None:
    """Every sequence against the reference, and its error against plain PyTorch's."""
    scale = options.pop("softmax_scale", q.shape[-1] ** -0.5)
    options = {"causal": True, "sliding_window": None, "soft_cap": None, "sinks": None} | options
    starts = cumulative(query).tolist()
    for seq, (k, v) in enumerate(zip(pages.k, pages.v, strict=True)):
        rows = slice(starts[seq], starts[seq + 1])
        if query[seq] == 0:
            continue
        expected, expected_lse = reference.attention(q[rows], k, v, scale, **options)
        plain = plain_attention(q[rows], k, v, scale, **options)
        error, lse_error = sixteen_bit_error(q[rows], k, v, pages.k_cache.dtype, scale, options)
        # Plain PyTorch may be exact by luck where there are one or two keys: allow a few units of
        # float32 on values of about 4, and for the longer sums of larger heads.
        floor = error + 1e-6 * max(1, q.shape[-1] / 64)
        assert_close(out[rows], expected, plain, floor=floor)
        # The rounding of a dot product grows with the scores, of which lse is about the largest.
        floor = lse_error + 2e-6 * max(1.0, float(expected_lse.max()))
        assert_close(lse[rows], expected_lse, floor=floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "page_size"), PAGED_SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["prefill", "decode", "mixed"])
def test_shapes(isa, generator, dtype, heads, page_size, kind):
    seq_lens = page_edges(page_size, longest=150)
    query = query_lens(kind, seq_lens)
    shape = (heads.num_kv_heads, heads.head_dim, page_size)
    pages = paging.build(seq_lens, *shape, dtype, generator, tokens_first=page_size == 16)
    q = random_q(sum(query), heads, dtype, generator)
    out, lse = attend(q, pages, query)
    check_sequences(q, pages, query, out, lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cache_dtype", "with_scales"), CACHES)
@pytest.mark.parametrize("heads", [SMOL, Heads(8, 2, 80), Heads(16, 1, 128)], ids=str)
def test_cache_dtypes(isa, generator, dtype, cache_dtype, with_scales, heads):
    seq_lens, query = [70, 280, 1], [1, 33, 1]
    pages = paging.build(
        seq_lens, heads.num_kv_heads, heads.head_dim, 16, cache_dtype, generator,
        with_scales=with_scales,
    )  # fmt: skip
    q = random_q(sum(query), heads, dtype, generator)
    out, lse = attend(q, pages, query)
    check_sequences(q, pages, query, out, lse)


@pytest.mark.parametrize(("cache_dtype", "with_scales"), CACHES)
@pytest.mark.parametrize("head_dim", [4, 12, 20, 36, 100])
def test_head_dims_of_no_whole_vector(isa, generator, cache_dtype, with_scales, head_dim):
    heads = Heads(4, 2, head_dim)
    seq_lens, query = [70, 280, 5], [1, 33, 5]
    pages = paging.build(
        seq_lens, heads.num_kv_heads, head_dim, 16, cache_dtype, generator, with_scales=with_scales
    )
    q = random_q(sum(query), heads, torch.float32, generator)
    out, lse = attend(q, pages, query)
    check_sequences(q, pages, query, out, lse)


@pytest.mark.parametrize("causal", [False, True])
def test_more_queries_than_keys(isa, generator, causal):
    """Without a causal mask every query sees every key; with one the first ones see none."""
    seq_lens, query = [3, 70, 1], [20, 100, 2]
    pages = paging.build(seq_lens, SMOL.num_kv_heads, SMOL.head_dim, 16, torch.float32, generator)
    q = random_q(sum(query), SMOL, torch.float32, generator)
    out, lse = attend(q, pages, query, causal=causal)
    begin = 0
    for k, v, num_queries, seq_len in zip(pages.k, pages.v, query, seq_lens, strict=True):
        rows = slice(begin, begin + num_queries)
        begin += num_queries
        scale = SMOL.head_dim**-0.5
        expected, expected_lse = reference.attention(q[rows], k, v, scale, causal=causal)
        assert_close(out[rows], expected, floor=1e-5)
        blind = num_queries - seq_len if causal else 0
        assert torch.equal(lse[rows] == -torch.inf, expected_lse == -torch.inf)
        assert (lse[rows][:blind] == -torch.inf).all() and lse[rows][blind:].isfinite().all()
        assert_close(lse[rows][blind:], expected_lse[blind:], floor=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"softmax_scale": 0.3},
        {"softmax_scale": -0.3},
        {"softmax_scale": 0.0},
        {"causal": False},
        {"sliding_window": 1},
        {"sliding_window": 70},
        {"sliding_window": 5000},
        {"soft_cap": 3.0},
        {"sinks": "sinks"},
        {"sliding_window": 33, "soft_cap": 2.0, "sinks": "sinks", "softmax_scale": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_options(isa, generator, dtype, options):
    if "sinks" in options:
        options = options | {"sinks": torch.randn(9, generator=generator) * 2}
    seq_lens, query = [150, 90, 600, 5], [150, 1, 20, 5]
    pages = paging.build(seq_lens, 3, 64, 16, dtype, generator)
    q = random_q(sum(query), SMOL, dtype, generator)
    out, lse = attend(q, pages, query, **options)
    check_sequences(q, pages, query, out, lse, **options)


@pytest.mark.parametrize("query", [[1, 1, 1], [9, 80, 3]], ids=["decode", "prefill"])
@pytest.mark.parametrize("window", [1, 100])
@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_pages_before_the_window_are_not_read(isa, generator, cache_dtype, window, query):
    """They may hold anything, and so may their entries: a pool has given them to others."""
    pages = paging.build([300, 700, 40], 3, 64, 16, cache_dtype, generator)
    q = random_q(sum(query), SMOL, torch.bfloat16, generator)
    expected = attend(q, pages, query, sliding_window=window)
    freed = paging.poison_before_window(pages, query, window)
    assert len(freed) > 40
    out, lse = attend(q, pages, query, sliding_window=window)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    for i, (seq, entry) in enumerate(freed):
        pages.page_table[seq, entry] = (-1, 2**31 - 1)[i % 2]
    out, lse = attend(q, pages, query, sliding_window=window)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])


@pytest.mark.parametrize(
    ("heads", "dtype", "cache_dtype", "options"),
    [
        (SMOL, torch.bfloat16, torch.bfloat16, {}),
        (SMOL, torch.float32, torch.float32, {"sliding_window": 100, "soft_cap": 5.0}),
        (Heads(4, 1, 128), torch.bfloat16, torch.bfloat16, {"sliding_window": 300}),
        (Heads(4, 1, 128), torch.bfloat16, torch.int8, {}),
        (Heads(2, 2, 40), torch.float32, torch.float16, {}),
        (Heads(26, 13, 32), torch.bfloat16, torch.bfloat16, {}),  # more than are taken together
        (SMOL, torch.float32, torch.bfloat16, {"soft_cap": 5.0}),
        (Heads(7, 1, 72), torch.float32, torch.bfloat16, {"sliding_window": 300}),
        (Heads(5, 1, 72), torch.float32, torch.int8, {"sliding_window": 100}),
        (Heads(16, 1, 72), torch.bfloat16, torch.float8_e4m3fn, {"soft_cap": 5.0}),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_company(isa, generator, heads, dtype, cache_dtype, options):
    """Whole prefill, chunks, decode, alone or in a batch, 1 to 3 threads: the same bits."""
    seq_lens = [7, 700, 130]
    pages = paging.build(seq_lens, heads.num_kv_heads, heads.head_dim, 16, cache_dtype, generator)
    q = random_q(sum(seq_lens), heads, dtype, generator)
    whole, whole_lse = attend(q, pages, seq_lens, **options)
    start, length = seq_lens[0], seq_lens[1]
    q1, whole1, lse1 = (x[start : start + length] for x in (q, whole, whole_lse))

    def alone(begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [begin, end) of sequence 1 as a call of their own, when it had `end` tokens."""
        one = paging.Pages(
            pages.k_cache,
            pages.v_cache,
            pages.k_scale,
            pages.v_scale,
            pages.page_table[1:2],
            torch.tensor([end], dtype=torch.int32),
            [],
            [],
        )
        return attend(q1[begin:end], one, [end - begin], **options)

    before = _C.num_threads()
    try:
        for threads in (1, 2, 3):
            _C.set_num_threads(threads)
            again, again_lse = attend(q, pages, seq_lens, **options)
            assert torch.equal(again, whole) and torch.equal(again_lse, whole_lse)
            for begin, end in [(0, 700), (0, 1), (0, 333), (333, 700), (255, 257), (690, 700)]:
                out, lse = alone(begin, end)
                assert torch.equal(out, whole1[begin:end]) and torch.equal(lse, lse1[begin:end])
            for position in (0, 63, 64, 255, 256, 511, 512, 640, 699):
                out, lse = alone(position, position + 1)
                assert torch.equal(out[0], whole1[position])
                assert torch.equal(lse[0], lse1[position])
    finally:
        _C.set_num_threads(before)


def test_padding_and_rows_without_keys(isa, generator):
    """More queries than tokens (the first see nothing), an empty sequence, padding at the end."""
    pages = paging.build([3, 0], 2, 32, 4, torch.float32, generator)
    q = random_q(11, Heads(4, 2, 32), torch.float32, generator)
    sinks = torch.randn(4, generator=generator)
    out, lse = attend(q, pages, [5, 2], sinks=sinks)
    empty = torch.ones(11, dtype=torch.bool)
    empty[2:5] = False
    assert bool((out[empty] == 0).all()) and bool((lse[empty] == -torch.inf).all())
    expected, expected_lse = reference.attention(
        q[2:5], pages.k[0], pages.v[0], 32**-0.5, sinks=sinks
    )
    assert_close(out[2:5], expected, floor=1e-6)
    assert_close(lse[2:5], expected_lse, floor=2e-6)


def test_no_tokens(isa, generator):
    pages = paging.build([9], 1, 32, 4, torch.float32, generator)
    out, _ = attend(torch.zeros(0, 2, 32), pages, [0])
    assert out.shape == (0, 2, 32)
    empty = torch.zeros(0, 4, dtype=torch.int32)
    lens, starts = torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    out = ops.paged_attention(
        torch.ones(2, 2, 32), pages.k_cache, pages.v_cache, empty, lens, starts
    )
    assert not out.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_offsets_beyond_32_bits(isa, generator, dtype):
    """Pages with element offsets beyond 32 bits; little memory is accessed."""
    stride = 2**31 // 3
    pages = paging.build([50], 1, 32, 16, dtype, generator)
    near = pages.k_cache.clone(), pages.v_cache.clone()
    count = len(pages.k_cache)
    assert (count - 1) * stride > 2**31
    buffer = torch.empty((count - 1) * stride + 2 * 16 * 32, dtype=dtype)
    for name, offset, cache in (("k_cache", 0, near[0]), ("v_cache", 16 * 32, near[1])):
        far = buffer[offset:].as_strided(cache.shape, (stride, 16 * 32, 32, 1))
        far.view(torch.uint8)[:] = cache.view(torch.uint8) if dtype.itemsize == 1 else 0
        if dtype.itemsize > 1:
            far[:] = cache
        setattr(pages, name, far)
    q = random_q(1, Heads(2, 1, 32), torch.float32, generator)
    out, lse = attend(q, pages, [1])
    check_sequences(q, pages, [1], out, lse)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_in_a_query_reaches_only_its_row(isa, generator, cache_dtype, value):
    pages = paging.build([40], 1, 32, 16, cache_dtype, generator)
    q = random_q(40, Heads(2, 1, 32), torch.float32, generator)
    clean, _ = attend(q, pages, [40])
    q[17, 1, 3] = value
    out, lse = attend(q, pages, [40])
    assert bool(out[17, 1].isnan().all()) and bool(lse[17, 1].isnan())
    out[17, 1] = clean[17, 1]
    assert torch.equal(out, clean)


def test_zero_query_weighs_all_keys_alike(isa, generator):
    for cache_dtype, with_scales in CACHES:
        pages = paging.build([50], 1, 32, 16, cache_dtype, generator, with_scales=with_scales)
        q = torch.zeros(1, 2, 32)
        out, lse = attend(q, pages, [1])
        check_sequences(q, pages, [1], out, lse)


def test_huge_scores(isa):
    """Scores of +-1e6: one key takes all, nothing overflows."""
    k_cache = torch.zeros(1, 1, 4, 32)
    k_cache[0, 0, :, 0] = torch.tensor([-1e3, 1e3, 0.0, 999.0])
    v_cache = torch.arange(4.0).reshape(1, 1, 4, 1).expand(1, 1, 4, 32).contiguous()
    q = torch.zeros(1, 1, 32)
    q[..., 0] = 1e3
    one = torch.tensor([4], dtype=torch.int32)
    out = ops.paged_attention(
        q, k_cache, v_cache, torch.zeros(1, 1, dtype=torch.int32), one, cumulative([1]),
        softmax_scale=1.0,
    )  # fmt: skip
    assert bool((out == 1).all())


def arguments() -> dict[str, Any]:
    return {
        "q": torch.zeros(3, 4, 32),
        "k_cache": torch.zeros(5, 2, 4, 32),
        "v_cache": torch.zeros(5, 2, 4, 32),
        "page_table": torch.tensor([[0, 1, 99], [4, -5, -5]], dtype=torch.int32),
        "seq_lens": torch.tensor([8, 1], dtype=torch.int32),
        "cu_seqlens_q": torch.tensor([0, 2, 3], dtype=torch.int32),
        "workspace": torch.zeros(1 << 20, dtype=torch.uint8),
    }


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_lens": ints(9, 1)}, r"page_table: sequence 0, entry 2: .* \[0, 5\), got 99"),
        ({"seq_lens": ints(8, 5)}, "page_table: sequence 1, entry 1: .* got -5"),
        ({"seq_lens": ints(13, 1)}, r"seq_lens: sequence 0: .* \[0, 12\] .*, got 13"),
        ({"seq_lens": ints(8, -1)}, "seq_lens: sequence 1: .* got -1"),
        ({"seq_lens": ints(8, 1).long()}, "seq_lens: expected int32, got int64"),
        ({"seq_lens": ints(8)}, r"seq_lens: expected shape \[2\], got \[1\]"),
        ({"cu_seqlens_q": ints(1, 2, 3)}, "cu_seqlens_q: expected 0 first, got 1"),
        ({"cu_seqlens_q": ints(0, 2, 1)}, "cu_seqlens_q: sequence 1: .* got 2 and 1"),
        ({"cu_seqlens_q": ints(0, 2, 4)}, "cu_seqlens_q: sequence 1: .* at most 3 tokens"),
        ({"q": torch.zeros(3, 3, 32)}, "q: expected a multiple of 2 heads"),
        ({"q": torch.zeros(3, 4, 64)}, r"k_cache: expected shape \[\*, \*, \*, 64\]"),
        ({"q": torch.zeros(3, 4, 32).half()}, "q: expected float32 or bfloat16, got float16"),
        ({"k_cache": torch.zeros(5, 2, 4, 64)[..., ::2]}, "k_cache: expected a contiguous last"),
        ({"v_cache": torch.zeros(5, 2, 8, 32)}, r"v_cache: expected shape \[5, 2, 4, 32\]"),
        ({"k_scale": torch.zeros(5, 2, 4)}, "k_scale: only int8 and float8_e4m3fn caches"),
        ({"sliding_window": -1}, r"sliding_window: expected a value in \[0, "),
        ({"sliding_window": 4, "causal": False}, "sliding_window: is defined for causal"),
        ({"soft_cap": -2.0}, "soft_cap: expected a value"),
        ({"softmax_scale": float("nan")}, "softmax_scale: expected a value .* got nan"),
        ({"sinks": torch.zeros(2)}, r"sinks: expected shape \[4\], got \[2\]"),
        ({"lse": torch.zeros(3, 2)}, r"lse: expected shape \[3, 4\]"),
        ({"out": torch.zeros(3, 4, 32).bfloat16()}, "out: expected float32, got bfloat16"),
        ({"workspace": torch.zeros(64, dtype=torch.uint8)}, "workspace: expected at least"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.paged_attention(**(arguments() | change))


@pytest.mark.parametrize(
    ("head_dim", "page_size", "message"),
    [
        (34, 4, "k_cache: expected a head_dim up to 256 that is a multiple of 4, got 34"),
        (264, 4, "k_cache: expected a head_dim .*, got 264"),
        (32, 512, "k_cache: expected a page_size that is a power of two from 1 to 256, got 512"),
    ],
)
def test_unsupported_sizes(head_dim, page_size, message):
    cache = torch.zeros(5, 2, page_size, head_dim)
    change = {"q": torch.zeros(3, 4, head_dim), "k_cache": cache, "v_cache": cache}
    with pytest.raises(ValueError, match=message):
        ops.paged_attention(**(arguments() | change))


def test_workspace_size_rejects_bad_heads():
    with pytest.raises(ValueError, match="num_qo_heads: expected a multiple of num_kv_heads 2"):
        ops.paged_attention_workspace_size(3, 2, 64, 100)


def test_opcheck():
    given = arguments()
    workspace = given.pop("workspace")
    out, lse = torch.zeros(3, 4, 32), torch.zeros(3, 4)
    options = (0.5, True, 0, 0.0, False, False, None, None, None, lse, out, workspace)
    torch.library.opcheck(
        torch.ops.lampo.paged_attention.default,
        (*given.values(), *options),
        test_utils=["test_schema", "test_autograd_registration", "test_faketensor"],
    )
