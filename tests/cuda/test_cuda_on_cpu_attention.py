# SPDX-License-Identifier: Apache-2.0
"""paged_attention of csrc/cuda/ on the CPU, under sanitizers. No GPU needed."""

from __future__ import annotations

import itertools
from typing import Any

import paging
import pytest
import torch
from attention_calls import apart, attend, workspace_size
from attention_inputs import cumulative, random_q
from cases import PAGED_SHAPES, Heads, page_edges, query_lens
from compare import assert_close
from cuda_attention import check

from cuda_on_cpu.client import Client, Refused
from lampo.bench import reference

pytestmark = pytest.mark.long

SMALL = Heads(6, 2, 64)


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


@pytest.mark.parametrize("query", [[1, 1], [9, 30]], ids=["decode", "prefill"])
@pytest.mark.parametrize("window", [1, 70])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float32, torch.int8], ids=str)
def test_pages_before_the_window_are_not_read(
    client, generator, cache_dtype, deterministic, window, query
):
    """They may hold anything, and so may their entries: a pool has given them to others."""
    pages = paging.build([150, 250], 2, 64, 16, cache_dtype, generator)
    q = random_q(sum(query), SMALL, torch.bfloat16, generator)
    options = {"sliding_window": window, "deterministic": deterministic}
    expected = attend(client, q, pages, query, **options)
    freed = paging.poison_before_window(pages, query, window)
    assert len(freed) > 10
    out, lse = attend(client, q, pages, query, **options)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    for i, (seq, entry) in enumerate(freed):
        pages.page_table[seq, entry] = (-1, 2**31 - 1)[i % 2]
    out, lse = attend(client, q, pages, query, **options)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
    check(q, pages, query, *expected, sliding_window=window)


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("query", [[1, 1], [9, 20]], ids=["decode", "prefill"])
def test_soft_cap_of_scaled_scores(client, generator, cache_dtype, query):
    """8 bits are scaled before they are capped; K and V have strides of their own."""
    pages = paging.build([40, 75], 2, 64, 16, cache_dtype, generator, with_scales=True)
    pages.v_cache = apart(pages.v_cache)
    q = random_q(sum(query), SMALL, torch.bfloat16, generator)
    out, lse = attend(client, q, pages, query, soft_cap=2.0)
    check(q, pages, query, out, lse, soft_cap=2.0)


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


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("query", [[1, 1], [3, 9]], ids=["decode", "prefill"])
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_copies_of_any_layout_are_equal(client, generator, cache_dtype, query, head_dim):
    """Rows that are neighbours in their pages, rows apart, and unaligned ones are copied by three
    ways. A page has just the rows of a warp."""
    heads = Heads(2, 1, head_dim)
    q = random_q(sum(query), heads, torch.bfloat16, generator)
    page_size = 16 if sum(query) == 2 else 8
    pages = paging.build([90, 70], 1, head_dim, page_size, cache_dtype, generator)
    expected = attend(client, q, pages, query, sliding_window=60)
    check(q, pages, query, *expected, sliding_window=60)
    k_cache, v_cache = pages.k_cache, pages.v_cache
    for pad in (16, 3):
        for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
            wider = torch.zeros(*cache.shape[:-1], head_dim + pad, dtype=cache.dtype)
            setattr(pages, name, wider[..., :head_dim].copy_(cache))
        found = attend(client, q, pages, query, sliding_window=60)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


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


LAYOUT = (
    *("head_dim", "rows", "keys", "warps", "row_blocks", "warp_keys", "stages", "max_blocks"),
    *("num_blocks", "cuts", "tile_cuts", "arrived", "costs", "first_split", "states"),
    *("accumulators", "bytes", "partial_rows"),
)


def layout(client: Client, **numbers: int) -> dict[str, int]:
    """Layout of a call: the tile, its blocks and the workspace's parts."""
    given = {"group_size": 4, "deterministic": 0, "cache_bytes": 2, "shared_bytes": 70_000}
    device = {"num_sms": 132, "shared_bytes_per_sm": 228 << 10}
    out = torch.zeros(len(LAYOUT), dtype=torch.int64)
    client.call("paged_attention_layout", out=out, **(given | device | numbers))
    return dict(zip(LAYOUT, out.tolist(), strict=True))


@pytest.mark.parametrize("deterministic", [0, 1])
@pytest.mark.parametrize("num_tokens", [3, 12, 15, 700])
@pytest.mark.parametrize("head_dim", [32, 64, 72, 128, 136, 256])
@pytest.mark.parametrize("cache_bytes", [1, 2])
def test_layout(clients, deterministic, num_tokens, head_dim, cache_bytes):
    """Warps have all of a tile, blocks what the workspace is promised for, its parts room."""
    call = {"batch_size": 3, "num_tokens": num_tokens, "head_dim": head_dim}
    call |= {"deterministic": deterministic, "cache_bytes": cache_bytes}
    found = layout(clients["address"], **call)
    few = num_tokens in (3, 12) and not deterministic  # 16 rows at most, as many of each sequence
    assert found["rows"] == (16 if few else 128 if head_dim <= 128 else 64)
    warp_rows = 16 * found["row_blocks"]
    if few:
        assert warp_rows == found["rows"] and found["warps"] * 16 == found["keys"]
    else:
        assert found["warps"] * warp_rows == found["rows"]
        assert found["warp_keys"] == found["keys"]
    assert 2048 % found["keys"] == 0, "splits of deterministic calls"
    for num_sms, shared_bytes_per_sm in ((132, 228 << 10), (108, 164 << 10), (84, 100 << 10)):
        for shared_bytes in (36_000, 70_000, 99 << 10):
            device = {"num_sms": num_sms, "shared_bytes_per_sm": shared_bytes_per_sm}
            w = layout(clients["address"], **call, **device, shared_bytes=shared_bytes)
            assert num_sms <= w["num_blocks"] <= num_sms * w["max_blocks"]
            per_sm = w["num_blocks"] // num_sms
            assert per_sm == 1 or per_sm * (shared_bytes + 1024) <= shared_bytes_per_sm
            assert w["partial_rows"] == 2 * w["num_blocks"] * w["rows"]
            sizes = {
                "cuts": 16 * (w["num_blocks"] + 1),
                "tile_cuts": 8 * (w["num_blocks"] + 1),
                "arrived": 4 * (w["num_blocks"] + 1),
                "costs": 8 * (3 + 2),  # with the padding
                "first_split": 8 * (3 + 1),
                "states": 8 * w["partial_rows"],
                "accumulators": 4 * w["partial_rows"] * w["head_dim"],
            }
            end = 0
            for name, size in sizes.items():
                assert end <= w[name] < end + 64 and w[name] % 64 == 0
                end = w[name] + size
            assert end <= w["bytes"] < end + 64


def plan(
    client: Client,
    seq_lens: list[int],
    query: list[int],
    num_blocks: int,
    heads: Heads,
    rows: int,
    keys: int,
    *,
    deterministic: bool = False,
    sliding_window: int = 0,
    causal: bool = True,
) -> tuple[list[tuple[int, ...]], list[int]]:
    """The cuts, (sequence, kv_head, row_tile, key_tile) each, and the first rows for splits.

    The cuts within each tile, and the counters that begin at 0, are checked here.
    """
    cuts = torch.full((num_blocks + 1, 4), -7, dtype=torch.int32)
    first_split = torch.full((len(seq_lens) + 1,), -7, dtype=torch.int64)
    tile_cuts = torch.full((num_blocks + 1, 2), -7, dtype=torch.int32)
    arrived = torch.full((num_blocks + 1,), -7, dtype=torch.int32)
    client.call(
        "paged_attention_plan",
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        cu_seqlens_q=cumulative(query),
        cuts=cuts,
        tile_cuts=tile_cuts,
        arrived=arrived,
        costs=torch.full((len(seq_lens) + 2,), -7, dtype=torch.int64),
        first_split=first_split,
        num_tokens=sum(query) + 3,
        num_qo_heads=heads.num_qo_heads,
        num_kv_heads=heads.num_kv_heads,
        rows=rows,
        keys=keys,
        deterministic=int(deterministic),
        sliding_window=sliding_window,
        causal=int(causal),
    )
    found = [tuple(cut) for cut in cuts.tolist()]
    within: dict[tuple[int, ...], list[int]] = {}
    for i, (*tile, key_tile) in enumerate(found):
        if key_tile > 0:
            within.setdefault(tuple(tile), []).append(i)
    for i, ((*tile, key_tile), (begin, end)) in enumerate(
        zip(found, tile_cuts.tolist(), strict=True)
    ):
        expected = within[tuple(tile)] if key_tile > 0 else []
        assert list(range(begin, end)) == expected, f"cut {i}"
    assert not arrived.any()
    return found, first_split.tolist()


def all_tiles(
    seq_lens: list[int], query: list[int], heads: Heads, rows: int, keys: int, window: int
) -> list[tuple[tuple[int, int, int], int, int]]:
    """Every tile in order, with the first of its key tiles and how many there are."""
    tiles = []
    for seq, (seq_len, count) in enumerate(zip([*seq_lens, 0], [*query, 3], strict=True)):
        num_rows = count * heads.group_size
        for kv_head in range(heads.num_kv_heads):
            for row_tile in range(-(-num_rows // rows)):
                last_row = min((row_tile + 1) * rows, num_rows) - 1
                first, last = (
                    seq_len - count + row // heads.group_size for row in (row_tile * rows, last_row)
                )
                begin = max(max(first, 0) - window + 1, 0) if window else 0
                if last < 0 or seq_len == 0:
                    begin, last = 0, -1
                size = -(-(last + 1) // keys) - begin // keys
                tiles.append(((seq, kv_head, row_tile), begin // keys, size))
    return tiles


PLANS = [
    ([1000, 10, 0, 129], [1, 1, 1, 1]),
    ([100_000], [1]),
    ([70, 3000, 0, 5, 40_000, 64, 65], [70, 1, 0, 5, 300, 64, 1]),
    ([5], [9]),  # more queries than tokens
    ([], []),
    ([0, 0], [0, 0]),
    ([20_000], [20_000]),  # its row tiles are summed by many threads
    ([17 * i % 900 for i in range(700)], [1] * 700),  # more sequences than threads
]


@pytest.mark.parametrize(("seq_lens", "query"), PLANS, ids=range(len(PLANS)))
@pytest.mark.parametrize(("rows", "keys"), [(16, 64), (128, 32), (128, 128)], ids=str)
@pytest.mark.parametrize("num_blocks", [1, 7, 264, 1000])
@pytest.mark.parametrize("window", [0, 200])
def test_plan(client, seq_lens, query, rows, keys, num_blocks, window):
    """Every key tile of every tile is assigned to one block; shares differ by little."""
    heads = Heads(8, 2, 64)
    tiles = all_tiles(seq_lens, query, heads, rows, keys, window)
    overhead, min_part, min_share = {64: (2, 2, 4), 32: (4, 4, 8), 128: (2, 1, 2)}[keys]
    cuts, _ = plan(client, seq_lens, query, num_blocks, heads, rows, keys, sliding_window=window)
    number = {tile: i for i, (tile, _, _) in enumerate(tiles)}
    number[(len(seq_lens) + 1, 0, 0)] = len(tiles)
    places = [(number[cut[:3]], cut[3]) for cut in cuts]
    assert places[0] == (0, 0) and places[-1] == (len(tiles), 0), "not all is done"
    assert places == sorted(places), "some is done twice"
    line = [0]
    for _, _, size in tiles:
        line.append(line[-1] + size + overhead)
    for tile, key_tile in places:
        size = tiles[tile][2] if tile < len(tiles) else 0
        assert key_tile == 0 or min_part <= key_tile <= size - min_part
    at = [line[tile] + (key_tile + overhead // 2 if key_tile else 0) for tile, key_tile in places]
    shares = [end - begin for begin, end in itertools.pairwise(at)]
    fair = max(line[-1] / num_blocks, min_share)
    # Each end may have moved by a short part and a tile's overhead.
    assert max(shares) <= fair + 2 * (min_part + overhead) + 1
    inside = [place for place in places if place[1] > 0]
    assert len(set(inside)) == len(inside), "an empty part"


@pytest.mark.parametrize(("seq_lens", "query"), PLANS, ids=range(len(PLANS)))
@pytest.mark.parametrize("num_blocks", [1, 7, 264])
def test_deterministic_plan(client, seq_lens, query, num_blocks):
    """As above, with splits at positions that are multiples of 2048, within the states' room."""
    heads, rows, keys = Heads(8, 2, 64), 128, 32
    tiles = all_tiles(seq_lens, query, heads, rows, keys, 0)
    cuts, first_split = plan(
        client, seq_lens, query, num_blocks, heads, rows, keys, deterministic=True
    )
    number = {tile: i for i, (tile, _, _) in enumerate(tiles)}
    number[(len(seq_lens) + 1, 0, 0)] = len(tiles)
    places = [(number[cut[:3]], cut[3]) for cut in cuts]
    assert places[0] == (0, 0) and places[-1] == (len(tiles), 0)
    assert places == sorted(places)
    taken = []
    for seq, first in enumerate(first_split):
        splits = [-(-size // 64) for (s, _, _), _, size in tiles if s == seq]
        if first >= 0:
            count = sum(splits) * [*query, 3][seq] * heads.group_size
            taken.append((first, first + count))
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(taken)), "rows used twice"
    assert not taken or taken[-1][1] <= num_blocks * rows
    if (seq_lens, query, num_blocks) == ([100_000], [1], 264):
        assert sum(cut[3] > 0 for cut in cuts) > 90, "splits that blocks could share"
    for cut in cuts:
        assert cut[3] % 64 == 0
        assert cut[3] == 0 or first_split[cut[0]] >= 0


def test_deterministic_bits_do_not_depend_on_company(client, generator):
    """Prefill, chunks, decode, alone or in a batch: the same bits, with splits in every form."""
    heads = Heads(2, 1, 64)
    pages = paging.build([7, 2100, 130], 1, 64, 16, torch.bfloat16, generator)
    query = [7, 70, 30]  # of the second sequence two row tiles, which are not cut
    q = random_q(sum(query), heads, torch.bfloat16, generator)
    whole, whole_lse = attend(client, q, pages, query, deterministic=True)
    check(q, pages, query, whole, whole_lse)
    for begin, end in [(0, 1), (0, 20), (69, 70)]:
        one = paging.Pages(
            pages.k_cache, pages.v_cache, None, None, pages.page_table[1:2],
            torch.tensor([2030 + end], dtype=torch.int32), [], [],
        )  # fmt: skip
        rows = slice(7 + begin, 7 + end)
        out, lse = attend(client, q[rows], one, [end - begin], deterministic=True)
        assert torch.equal(out, whole[rows]) and torch.equal(lse, whole_lse[rows])


@pytest.mark.parametrize(
    ("heads", "query", "seq_len"),
    [(Heads(4, 2, 64), 1, 2100), (Heads(2, 1, 64), 65, 4200)],
    ids=["shared by blocks", "one after the other"],
)
def test_deterministic_splits(client, generator, heads, query, seq_len):
    """Two splits per head, in separate rows; three splits of a tile, all in one block."""
    pages = paging.build([seq_len], heads.num_kv_heads, 64, 16, torch.bfloat16, generator)
    q = random_q(query, heads, torch.bfloat16, generator)
    out, lse = attend(client, q, pages, [query], deterministic=True)
    check(q, pages, [query], out, lse)


@pytest.mark.parametrize("query", [[1], [30]], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    ("heads", "sliding_window"), [(Heads(4, 1, 64), None), (Heads(6, 3, 64), 900)]
)
def test_every_block_has_a_part(client, generator, query, heads, sliding_window):
    """One sequence, cut into parts, forward and backward: merged in the order of its keys.

    With three heads a block has the end of one head's tile and the beginning of the next one's.
    """
    pages = paging.build([1500], heads.num_kv_heads, 64, 16, torch.bfloat16, generator)
    q = random_q(sum(query), heads, torch.bfloat16, generator)
    sinks = torch.randn(heads.num_qo_heads, generator=generator)
    options = {"sinks": sinks, "sliding_window": sliding_window}
    out, lse = attend(client, q, pages, query, **options)
    check(q, pages, query, out, lse, **options)
    again, _ = attend(client, q, pages, query, order="backward", **options)
    assert torch.equal(again, out)


def test_lengths_may_change_in_a_workspace(client, generator):
    """A captured call: one workspace, other lengths, what the last call left in it."""
    heads = Heads(8, 2, 64)
    pages = paging.build([300, 300], 2, 64, 16, torch.bfloat16, generator)
    workspace = None
    for lens in ([300, 300], [1, 299], [0, 70], [300, 0]):
        pages.seq_lens = torch.tensor(lens, dtype=torch.int32)
        now = paging.Pages(
            pages.k_cache, pages.v_cache, None, None, pages.page_table, pages.seq_lens,
            [k[:n] for k, n in zip(pages.k, lens, strict=True)],
            [v[:n] for v, n in zip(pages.v, lens, strict=True)],
        )  # fmt: skip
        q = random_q(2, heads, torch.bfloat16, generator)
        if workspace is None:
            size = workspace_size(client, heads, batch_size=2, num_tokens=2, deterministic=0)
            workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
        out, lse = attend(client, q, now, [1, 1], workspace=workspace)
        check(q, now, [1, 1], out, lse)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("query", [[1, 1], [3, 30]], ids=["decode", "mixed"])
def test_layers_share_a_plan(client, generator, query, deterministic):
    """Calls with the plan of the first: the same bits as with one of their own, in any order of
    blocks; shared tiles are merged in every one."""
    lens = [2100, 40] if deterministic else [900, 300]
    options: dict[str, Any] = {"deterministic": deterministic, "sliding_window": 2090}
    size = workspace_size(
        client, SMALL, batch_size=2, num_tokens=sum(query), deterministic=int(deterministic)
    )
    workspace = torch.full((size,), 0xFF, dtype=torch.uint8)
    for layer, order in enumerate(["forward", "backward"]):
        pages = paging.build(lens, 2, 64, 16, torch.bfloat16, generator)
        q = random_q(sum(query), SMALL, torch.bfloat16, generator)
        out, lse = attend(
            client, q, pages, query, order=order, planned=layer > 0, workspace=workspace, **options
        )
        check(q, pages, query, out, lse, sliding_window=2090)
    alone = attend(client, q, pages, query, **options)
    assert torch.equal(out, alone[0]) and torch.equal(lse, alone[1])


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("query", [[1, 1], [3, 30]], ids=["decode", "mixed"])
def test_memory_without_a_plan(client, generator, query, deterministic):
    """Undefined results, but no access outside of a tensor, and an end."""
    pages = paging.build([300, 70], 2, 64, 16, torch.bfloat16, generator)
    q = random_q(sum(query), SMALL, torch.bfloat16, generator)
    size = workspace_size(
        client, SMALL, batch_size=2, num_tokens=sum(query), deterministic=int(deterministic)
    )
    garbage = [torch.full((size,), byte, dtype=torch.uint8) for byte in (0, 0x7F, 0xFF)]
    small = torch.randint(0, 4, (size // 4,), dtype=torch.int32, generator=generator)
    for workspace in (*garbage, torch.cat([small, small[:16]])[: size // 4].view(torch.uint8)):
        options = {"deterministic": deterministic, "planned": True}
        attend(client, q, pages, query, workspace=workspace, **options)


def test_unsupported_types_are_named(client, generator):
    pages = paging.build([9], 1, 32, 4, torch.float32, generator)
    with pytest.raises(Refused, match="q: expected float16 or bfloat16, got float32"):
        attend(client, torch.zeros(1, 2, 32), pages, [1])
