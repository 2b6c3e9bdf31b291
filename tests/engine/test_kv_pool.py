# SPDX-License-Identifier: Apache-2.0
"""The pool of layers that keep different things."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from lampo.engine.kv_pool import (
    KVPool,
    default_max_model_len,
    num_state_slots,
    page_bytes,
    pages_per_sequence,
    saved_distance,
    state_bytes,
    window_of,
)
from lampo.models.step import PagedCache, PagedKV, State, StateCache, StepLimits

KEEPS = (
    PagedKV(2, 64, window=16),
    State(((3, 5), (7,)), torch.float32),
    PagedKV(1, 128),
    State(((2,),), torch.bfloat16),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_layers_have_what_they_keep(dtype):
    pool = KVPool(KEEPS, 3, 4, dtype, num_slots=5)
    first, second, third, fourth = pool.cache.layers
    assert isinstance(first, PagedCache) and isinstance(third, PagedCache)
    assert first.k.shape == first.v.shape == (3, 2, 4, 64)
    assert third.k.shape == third.v.shape == (3, 1, 4, 128)
    assert (first.k_scale is None) == (dtype != torch.int8)
    assert isinstance(second, StateCache) and isinstance(fourth, StateCache)
    assert [t.shape for t in second.tensors] == [(5, 3, 5), (5, 7)]
    assert [t.dtype for t in (*second.tensors, *fourth.tensors)] == [
        *(torch.float32, torch.float32, torch.bfloat16)
    ]
    assert state_bytes(KEEPS) == 3 * 64, "each begins with a cache line"
    # Nothing overlaps: each tensor holds its own number afterwards.
    tensors = [*pool.cache.paged_tensors(), *pool.cache.state_tensors()]
    for i, tensor in enumerate(tensors):
        tensor.fill_(i)
    assert all((tensor == i).all() for i, tensor in enumerate(tensors))
    used = sum(t[0].nbytes for t in pool.cache.paged_tensors())
    assert used <= page_bytes(KEEPS, 4, dtype) == pool.bytes_per_page < used + 64


def test_copies():
    pool = KVPool(KEEPS, 3, 4, torch.float32, num_slots=3)
    for tensor in (*pool.cache.paged_tensors(), *pool.cache.state_tensors()):
        tensor.copy_(torch.randn(tensor.shape))
    kept = [t.clone() for t in pool.cache.state_tensors()]
    pool.copy_page(0, 2)
    assert all(torch.equal(t[0], t[2]) for t in pool.cache.paged_tensors())
    pool.copy_state(0, 2)
    for tensor, before in zip(pool.cache.state_tensors(), kept, strict=True):
        assert torch.equal(tensor[2], before[0]) and torch.equal(tensor[:2], before[:2])


def test_no_slots_without_states():
    pool = KVPool([PagedKV(1, 32)], 2, 4, torch.float32, num_slots=9)
    assert pool.num_slots == 0 and list(pool.cache.state_tensors()) == []


def test_slots_of_saved_states():
    """Those of a GiB, as far as the longest sequences have them, beside the sequences' own."""
    limits = StepLimits(
        max_num_seqs=8,
        max_num_batched_tokens=520,
        max_pages_per_seq=100,
        page_size=16,
        device=torch.device("cpu"),
    )
    assert saved_distance(16, 520) == 512
    assert num_state_slots(KEEPS, limits, prefix_caching=True) == 8 + 8 * (1600 // 512)
    assert num_state_slots(KEEPS, limits, prefix_caching=False) == 8
    large = [State(((1 << 20, 64),))]  # 256 MiB
    assert num_state_slots(large, limits, prefix_caching=True) == 8 + 4
    larger = [State(((1 << 20, 1024),))]
    assert num_state_slots(larger, limits, prefix_caching=True) == 8 + 1


@pytest.mark.parametrize(
    ("windows", "expected"),
    [([None], None), ([8, 32], 32), ([8, None], None), ([], None)],
)
def test_window_of_all_layers(windows, expected):
    """Pages can be given back only when no layer sees them any more."""
    assert window_of([PagedKV(1, 32, window) for window in windows]) == expected
    assert window_of([*(PagedKV(1, 32, w) for w in windows), State(((1,),))]) == expected


def test_pages_of_the_longest_sequence():
    assert pages_per_sequence(1000, 16, None, 512) == 63
    assert pages_per_sequence(1000, 16, 64, 128) == 13
    assert pages_per_sequence(100, 16, 64, 128) == 7, "no more than the sequence has"


@pytest.mark.parametrize(("kv_size", "expected"), [(1000, 1 << 24), (1 << 20, 2000)])
def test_default_max_model_len(kv_size, expected, monkeypatch, caplog):
    """The context that a file names, but no more tokens than the memory could hold."""
    values = {"SC_PHYS_PAGES": 2000 << 9, "SC_PAGE_SIZE": 4096}
    if expected == 1 << 24:
        values["SC_PHYS_PAGES"] <<= 20
    monkeypatch.setattr(os, "sysconf", values.__getitem__)
    config = SimpleNamespace(kv_size=kv_size, max_position_embeddings=1 << 24)
    found = default_max_model_len(config, torch.bfloat16, torch.device("cpu"))
    assert found == expected
    assert (f"max_model_len: {expected}" in caplog.text) == (expected < 1 << 24)
