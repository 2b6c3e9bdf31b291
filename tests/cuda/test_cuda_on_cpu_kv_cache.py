# SPDX-License-Identifier: Apache-2.0
"""append_kv of csrc/cuda/ on the CPU, under sanitizers, against the CPU op. No GPU needed."""

from __future__ import annotations

import paging
import pytest
import torch
from test_kv_cache import CACHE_DTYPES, HEADS, KV_HEADS, cos_sin_table, paging_bits

from cuda_on_cpu.client import Client
from cuda_on_cpu.fixtures import padded
from lampo import _C, ops

pytestmark = pytest.mark.long

PAGE_SIZE, NUM_PAGES, MAX_POSITIONS = 4, 9, 500
SLOTS = [5, 35, -1, 0, 20, 36, -2, 2**62, 7, 34, 1, 3, 2]  # of 36; each valid one once
POSITIONS = [0, 499, 3, 250, 17, 4, 5, 6, -1, 500, 2**31 - 1, -(2**31), 77]


def arguments(head_dim, dtype, cache_dtype, rotary_dim, norm, pad=0, weight_dtype=None):
    """Arguments of a call on the device; None: absent."""
    tokens = len(SLOTS)
    given = {
        name: padded((tokens, heads, head_dim), pad, dtype)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    }
    given["v"] = given["v"].flip(0)
    for name, first in (("k_cache", False), ("v_cache", True)):
        given[name] = paging.allocate(
            NUM_PAGES, KV_HEADS, PAGE_SIZE, head_dim, cache_dtype, tokens_first=first
        )
        if cache_dtype in paging.SCALE_LIMIT:
            scale = torch.full((NUM_PAGES, KV_HEADS, PAGE_SIZE), -1.0)
            given[name.replace("cache", "scale")] = scale
    given["slot_mapping"] = torch.tensor(SLOTS)
    if rotary_dim:
        positions = torch.tensor(POSITIONS)
        given["positions"] = positions.int() if head_dim == 64 else positions
        given["cos_sin"] = cos_sin_table(MAX_POSITIONS, rotary_dim)
    if norm:
        generator = torch.Generator().manual_seed(head_dim)
        for name in ("q_norm_weight", "k_norm_weight"):
            weight = torch.randn(head_dim, generator=generator)
            given[name] = weight.to(weight_dtype or dtype)
    return given


def run_on_cpu(given, **options):
    """The CPU op, to which no value is given that is out of range."""
    dtype = given["q"].dtype
    given = {k: v.clone() for k, v in given.items()}
    slots = given["slot_mapping"]
    slots[(slots < 0) | (slots >= NUM_PAGES * PAGE_SIZE)] = -1
    if "positions" in given:
        given["positions"].clamp_(0, MAX_POSITIONS - 1)
    if dtype == torch.float16:  # which the CPU op does not take: it rounds float32 alike
        wide = ("q", "k", "v", "q_norm_weight", "k_norm_weight")
        given |= {k: given[k].float() for k in wide if k in given}
    ops.append_kv(**given, **options)
    given["q"] = given["q"].to(dtype)
    return given


def steps(a: torch.Tensor, b: torch.Tensor) -> int:
    """Largest distance in representable values; 0 where both are the same NaN."""

    def rank(x: torch.Tensor) -> torch.Tensor:
        size = x.element_size()
        bits = x.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32}[size]).long()
        magnitude = bits & ((1 << (8 * size - 1)) - 1)
        return bits if x.dtype == torch.int8 else torch.where(bits < 0, -magnitude, magnitude)

    return int((rank(a) - rank(b)).abs().max())


def check(client: Client, given, interleaved: bool, apart: int, hadamard: bool = False) -> None:
    options = {"interleaved": interleaved, "hadamard": hadamard, "eps": 1e-5}
    expected = run_on_cpu(given, **options)
    for order in ("forward", "backward"):
        actual = {k: v.clone() for k, v in given.items()}
        for name in ("q", "k", "v"):  # clone() would lose the rows' distance
            actual[name] = torch.empty_strided(
                given[name].shape, given[name].stride(), dtype=given[name].dtype
            ).copy_(given[name])
        client.call("append_kv", order=order, **options, **actual)
        for name in ("q", "k_cache", "v_cache"):
            assert steps(actual[name], expected[name]) <= apart, name
        for name in ("k", "v", "slot_mapping"):
            assert torch.equal(actual[name], given[name])
        for name in ("k_scale", "v_scale"):
            if name in given:
                assert steps(actual[name], expected[name]) <= 2 * apart, name


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "interleaved", "pad"),
    [
        (32, 0, False, 0),
        (64, 64, False, 0),
        (64, 64, False, 3),
        (72, 72, True, 0),
        (80, 40, False, 0),
        (80, 42, False, 0),
        (96, 2, False, 1),
        (128, 32, True, 8),
        (256, 256, False, 0),
    ],
)
def test_append_kv(client, dtype, cache_dtype, head_dim, rotary_dim, interleaved, pad):
    """The bits of the CPU op, which rotates halves with a fused multiply-add where it can."""
    given = arguments(head_dim, dtype, cache_dtype, rotary_dim, False, pad)
    fused = _C.cpu_isa() != "baseline" or interleaved or rotary_dim == 0
    check(client, given, interleaved, 0 if fused else 1)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim"), [(32, 0), (64, 64), (72, 72), (80, 40), (96, 2), (256, 256)]
)
def test_append_kv_with_hadamard(client, dtype, cache_dtype, head_dim, rotary_dim):
    given = arguments(head_dim, dtype, cache_dtype, rotary_dim, False)
    check(client, given, True, 0, hadamard=True)


@pytest.mark.parametrize("cache_dtype", CACHE_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "interleaved", "pad"),
    [(32, 0, False, 0), (72, 72, True, 0), (80, 40, False, 3), (256, 256, False, 0)],
)
def test_append_kv_with_norm(
    client, dtype, weight_dtype, cache_dtype, head_dim, rotary_dim, interleaved, pad
):
    """Sums of squares differ in their order: within a step of a rounded type, a few of float32."""
    given = arguments(head_dim, dtype, cache_dtype, rotary_dim, True, pad, weight_dtype)
    options = {"interleaved": interleaved, "hadamard": False, "eps": 1e-5}
    expected = run_on_cpu(given, **options)
    client.call("append_kv", **options, **given)
    for name in ("q", "k_cache", "v_cache", "k_scale", "v_scale"):
        if name not in given:
            continue
        if given[name].dtype == torch.float32:
            close = torch.isclose(given[name], expected[name], rtol=1e-6, atol=2e-6, equal_nan=True)
            assert close.all(), name
        elif given[name].dtype == torch.bfloat16 or cache_dtype in paging.SCALE_LIMIT:
            assert steps(given[name], expected[name]) <= 1, name
        else:
            difference = (given[name].double() - expected[name].double()).abs().nan_to_num()
            assert (difference <= expected[name].double().abs().nan_to_num() * 2**-10 + 2e-6).all()


def test_without_q(client):
    given = arguments(64, torch.float32, torch.float32, 64, False)
    options = {"interleaved": False, "hadamard": False, "eps": 1e-5}
    expected = run_on_cpu(given, **options)
    del given["q"]
    client.call("append_kv", **options, **given)
    for name in ("k_cache", "v_cache"):
        assert torch.equal(paging_bits(given[name]), paging_bits(expected[name]))


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn])
def test_small_and_zero_vectors(client, cache_dtype):
    given = arguments(32, torch.float32, cache_dtype, 0, False)
    given["k"][0] = 0
    given["k"][1] = 1e-36 * given["k"][3]
    given["k"][3] = 1e-33 * given["v"][3]
    given["v"][0] = 3e38
    check(client, given, False, 0)


def test_float8_without_scales_saturates(client):
    given = arguments(64, torch.float32, torch.float8_e4m3fn, 0, False)
    given = {k: v for k, v in given.items() if "scale" not in k}
    given["k"].mul_(10 ** torch.linspace(-4, 4, 64))
    check(client, given, False, 0)
