# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import paging
import pytest
import torch
from compare import assert_close

from lampo import ops
from lampo.bench import reference

CACHE_DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8]
HEADS = 6  # query heads
KV_HEADS = 2


def cos_sin_table(max_positions: int, rotary_dim: int) -> torch.Tensor:
    frequency = 10000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    angle = torch.arange(max_positions)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def qkv_views(
    num_tokens: int, head_dim: int, dtype: torch.dtype, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as one projection leaves them: parts of the rows of one buffer."""
    buffer = torch.randn(num_tokens, HEADS + 2 * KV_HEADS, head_dim, generator=generator).to(dtype)
    return buffer.split([HEADS, KV_HEADS, KV_HEADS], 1)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("head_dim", "rotary", "interleaved", "norm", "hadamard"),
    [
        (32, 0, False, False, False),
        (32, 0, False, False, True),
        (4, 0, False, False, True),
        (64, 1, False, False, False),
        (64, 1, False, False, True),
        (72, 1, True, True, True),
        (80, 0.5, False, True, False),
        (96, 0.5, False, True, True),
        (128, 0.25, True, False, False),
        (256, 1, False, True, False),
        (256, 1, False, True, True),
    ],
)
def test_append(isa, generator, dtype, cache_dtype, head_dim, rotary, interleaved, norm, hadamard):
    page_size, num_pages, num_tokens = 4, 9, 13
    q, k, v = qkv_views(num_tokens, head_dim, dtype, generator)
    k_cache, v_cache = (
        paging.allocate(num_pages, KV_HEADS, page_size, head_dim, cache_dtype, tokens_first=first)
        for first in (False, True)
    )
    before = [paging_bits(cache).clone() for cache in (k_cache, v_cache)]
    slots = torch.randperm(num_pages * page_size, generator=generator)[:num_tokens]
    slots[4] = -1
    positions = torch.randint(0, 500, (num_tokens,), generator=generator)
    rotary_dim = int(rotary * head_dim)
    table = cos_sin_table(500, rotary_dim) if rotary else None
    weights = [torch.randn(head_dim, generator=generator).to(dtype) for _ in range(2)]
    scaled = cache_dtype in paging.SCALE_LIMIT
    scales = [torch.full((num_pages, KV_HEADS, page_size), -1.0) for _ in range(2)]

    def expected(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = reference.rms_norm(x, weight, 1e-5) if norm else x.double()
        x = x if table is None else reference.rope(x, table[positions], interleaved)
        return reference.hadamard(x) if hadamard else x

    expected_q, expected_k, expected_v = (
        expected(q, weights[0]),
        expected(k, weights[1]),
        v.double(),
    )
    saved = k.clone(), v.clone()
    ops.append_kv(
        q,
        k,
        v,
        k_cache,
        v_cache,
        slots,
        positions=(positions.int() if head_dim == 64 else positions) if rotary else None,
        cos_sin=table,
        interleaved=interleaved,
        hadamard=hadamard,
        q_norm_weight=weights[0] if norm else None,
        k_norm_weight=weights[1] if norm else None,
        eps=1e-5,
        k_scale=scales[0] if scaled else None,
        v_scale=scales[1] if scaled else None,
    )
    # Rounding in float32 before the one to q's type: a few units of the largest elements.
    floor = 4 * 2.0**-23 * float(expected_q.abs().max())
    assert_close(q, expected_q, floor=floor)
    assert torch.equal(k, saved[0]) and torch.equal(v, saved[1])

    kept = slots >= 0
    page, slot = slots[kept] // page_size, slots[kept] % page_size
    for cache, scale, want, old in zip(
        (k_cache, v_cache), scales, (expected_k, expected_v), before, strict=True
    ):
        stored = cache.float()[page, :, slot]
        want = want[kept]
        if scaled:
            limit = paging.SCALE_LIMIT[cache_dtype]
            assert_close(scale[page, :, slot], want.abs().amax(-1) / limit, floor=floor)
            step = want.abs().amax(-1, keepdim=True) / limit
            relative = 0.0 if cache_dtype == torch.int8 else 2.0**-4
            allowed = (0.5 if cache_dtype == torch.int8 else 2.0**-10) * step
            error = (stored.double() * scale[page, :, slot].double()[..., None] - want).abs()
            assert bool((error <= (allowed + relative * want.abs()) * (1 + 1e-4) + floor).all())
        else:
            assert_close(stored.to(cache_dtype), want, floor=floor)
        untouched = torch.ones(num_pages, page_size, dtype=torch.bool)
        untouched[page, slot] = False
        here, there = untouched.nonzero(as_tuple=True)
        assert torch.equal(paging_bits(cache)[here, :, there], old[here, :, there])
        if scaled:
            assert bool((scale[here, :, there] == -1).all())


def paging_bits(cache: torch.Tensor) -> torch.Tensor:
    """The cache's bits, comparable where it holds NaN."""
    return cache.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[cache.element_size()])


def test_float8_without_scales_rounds_as_torch_does(isa, generator):
    # torch turns what is too large into NaN; a cache saturates.
    k = torch.randn(8, 1, 64, generator=generator) * 10 ** torch.linspace(-4, 2, 64)
    k[0, 0, :6] = torch.tensor([448.0, -448.0, 0.0, -0.0, 2.0**-10, 3 * 2.0**-10])
    k_cache = torch.zeros(1, 1, 8, 64, dtype=torch.float8_e4m3fn)
    v_cache = torch.zeros_like(k_cache)
    ops.append_kv(None, k, k * 1e6, k_cache, v_cache, torch.arange(8))
    want = k.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(k_cache[0, 0].view(torch.uint8), want[:, 0].view(torch.uint8))
    assert float(v_cache.float().abs().max()) == 448


def test_zero_vector_has_scale_zero(isa):
    k = torch.zeros(1, 1, 32)
    k_cache, v_cache = (torch.full((1, 1, 1, 32), 7, dtype=torch.int8) for _ in range(2))
    scales = [torch.full((1, 1, 1), -1.0) for _ in range(2)]
    ops.append_kv(
        None, k, k, k_cache, v_cache, torch.tensor([0]), k_scale=scales[0], v_scale=scales[1]
    )
    assert not k_cache.any() and not v_cache.any()
    assert float(scales[0]) == 0 and float(scales[1]) == 0


def test_offsets_beyond_32_bits(isa, generator):
    """A slot with an element offset beyond 32 bits; the pages in between are not accessed."""
    stride = 2**31 // 3
    buffer = torch.empty(4 * stride + 64, dtype=torch.float8_e4m3fn)
    cache = buffer.as_strided((4, 1, 2, 32), (stride, 64, 32, 1))
    k = torch.randn(1, 1, 32, generator=generator)
    ops.append_kv(None, k, k, cache, cache, torch.tensor([7]))
    want = k.flatten().to(torch.float8_e4m3fn).float()
    assert torch.equal(buffer[3 * stride + 32 :][:32].float(), want)


ARGUMENTS = {
    "q": torch.zeros(2, 4, 32),
    "k": torch.zeros(2, 2, 32),
    "v": torch.zeros(2, 2, 32),
    "k_cache": torch.zeros(3, 2, 4, 32),
    "v_cache": torch.zeros(3, 2, 4, 32),
    "slot_mapping": torch.tensor([0, 1]),
    "positions": torch.tensor([0, 1]),
    "cos_sin": torch.zeros(10, 32),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot_mapping": torch.tensor([0, 12])}, r"slot_mapping: token 1: .* \[-1, 12\), got 12"),
        ({"slot_mapping": torch.tensor([-2, 0])}, "slot_mapping: token 0: expected .* got -2"),
        ({"slot_mapping": torch.tensor([0, 1]).int()}, "slot_mapping: expected int64, got int32"),
        ({"positions": torch.tensor([0, 10])}, r"positions: token 1: .* \[0, 10\), got 10"),
        ({"positions": torch.tensor([-1, 0]).int()}, "positions: token 0: expected .* got -1"),
        ({"positions": None}, "positions: expected a tensor beside cos_sin, got None"),
        ({"cos_sin": torch.zeros(10, 34)}, "cos_sin: expected an even rotary_dim of at most"),
        ({"cos_sin": torch.zeros(0, 32)}, "cos_sin: expected at least one position, got none"),
        ({"cos_sin": torch.zeros(10, 3)}, "cos_sin: expected an even rotary_dim"),
        ({"k": torch.zeros(2, 2, 64)}, r"v: expected shape \[2, 2, 64\]"),
        ({"q": torch.zeros(2, 4, 32).bfloat16()}, "q: expected float32, got bfloat16"),
        ({"k_cache": torch.zeros(3, 1, 4, 32)}, r"k_cache: expected shape \[\*, 2, \*, 32\]"),
        ({"k_cache": torch.zeros(3, 2, 3, 32)}, "k_cache: expected a page_size that is a power"),
        ({"v_cache": torch.zeros(3, 2, 4, 32).half()}, "v_cache: expected float32, got float16"),
        ({"v_cache": torch.zeros(1, 2, 4, 32).expand(3, 2, 4, 32)}, "v_cache: is written, so"),
        ({"k_scale": torch.zeros(3, 2, 4)}, "k_scale: only int8 and float8_e4m3fn caches"),
        ({"k_norm_weight": torch.zeros(31)}, r"k_norm_weight: expected shape \[32\]"),
        ({"eps": -1.0}, r"eps: expected a value in \[0, 1\], got -1"),
    ],
)
def test_bad_arguments_write_nothing(change, message):
    arguments = {k: v.clone() for k, v in ARGUMENTS.items()} | change
    watched = [arguments[name] for name in ("k_cache", "v_cache") if name not in change]
    arguments["k"] = arguments["k"] + 1
    with pytest.raises((ValueError, TypeError), match=message):
        ops.append_kv(**arguments)
    assert not any(bool(cache.any()) for cache in watched)


def test_int8_needs_scales():
    arguments = {k: v.clone() for k, v in ARGUMENTS.items()}
    arguments |= {name: arguments[name].to(torch.int8) for name in ("k_cache", "v_cache")}
    with pytest.raises(ValueError, match="k_scale: an int8 cache needs its scales, got None"):
        ops.append_kv(**arguments)


def test_opcheck():
    arguments = {k: v.clone() for k, v in ARGUMENTS.items()}
    torch.library.opcheck(
        torch.ops.lampo.append_kv.default,
        (*arguments.values(), False, False, None, None, 1e-6, None, None),
    )
