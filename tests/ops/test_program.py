# SPDX-License-Identifier: Apache-2.0
"""Recorded ops: replays equal eager calls to the bit, and are as safe."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from lampo import _C, ops
from lampo.runtime.program import Program


def linears(count: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, size, generator=generator) / size**0.5 for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_replay_equals_eager(isa, threads):
    weights = linears(5, 96)
    x, y = torch.randn(3, 96), torch.zeros(3, 96)
    norm = torch.randn(96)
    before = _C.num_threads()
    try:
        _C.set_num_threads(threads)

        def step() -> None:
            y.copy_(x)  # torch's own ops are not recorded: they run now, not in a replay
            for weight in weights:
                ops.linear(ops.rms_norm(y, norm), weight, out=y, accumulate=True)

        hidden = torch.empty(3, 96)
        program = Program()
        with program.record():
            for weight in weights:
                ops.rms_norm(y, norm, out=hidden)
                ops.linear(hidden, weight, out=y, accumulate=True)
        assert len(program) == 2 * len(weights)
        for seed in range(20):
            x.normal_(generator=torch.Generator().manual_seed(seed))
            step()
            expected = y.clone()
            y.copy_(x)
            program.replay()
            assert torch.equal(y, expected)
    finally:
        _C.set_num_threads(before)


def test_recording_runs_the_ops_and_keeps_their_tensors():
    program = Program()
    out = torch.zeros(2, 32)
    with program.record():
        ops.linear(torch.ones(2, 64), torch.ones(32, 64), norm_weight=torch.ones(64), out=out)
    assert torch.allclose(out, torch.full_like(out, 64.0))
    gc.collect()
    scratch = [torch.full((64, 64), float("nan")) for _ in range(50)]  # over what was not kept
    out.zero_()
    program.replay()
    assert torch.allclose(out, torch.full_like(out, 64.0))
    del scratch


def test_values_are_checked_before_a_replay():
    ids = torch.tensor([1, 2])
    table, out = torch.randn(4, 8), torch.zeros(2, 8)
    program = Program()
    with program.record():
        ops.embedding(ids, table, out=out)
    ids[1] = 4
    out.zero_()
    with pytest.raises(ValueError, match=r"token_ids: expected ids in \[0, 4\), got 4 at 1"):
        program.replay()
    assert not out.any()
    ids[1] = 3
    program.replay()
    assert torch.equal(out, table[ids])


def attention_program(windows: tuple[int, ...]) -> tuple[Program, torch.Tensor, torch.Tensor]:
    """Append and attend once per window, over one page table; its pages and its slots."""
    cache = torch.zeros(4, 1, 16, 32)
    q, k, v = (torch.randn(1, 1, 32) for _ in range(3))
    slots, page_table = torch.tensor([17]), torch.tensor([[0, 1]], dtype=torch.int32)
    program = Program()
    with program.record():
        ops.append_kv(None, k, v, cache, cache.clone(), slots)
        for window in windows:
            ops.paged_attention(
                q,
                cache,
                cache,
                page_table,
                torch.tensor([18], dtype=torch.int32),
                torch.tensor([0, 1], dtype=torch.int32),
                sliding_window=window,
            )
    return program, page_table, slots


@pytest.mark.parametrize("windows", [(0,), (0, 1), (1, 0)])
def test_pages_and_slots_are_checked_before_a_replay(windows):
    program, page_table, slots = attention_program(windows)
    page_table[0, 0] = 4  # outside of the smaller window, inside of the larger
    with pytest.raises(ValueError, match="page_table: sequence 0, entry 0: expected a page in"):
        program.replay()
    page_table[0, 0] = 3
    program.replay()
    slots[0] = 64
    with pytest.raises(ValueError, match=r"slot_mapping: token 0: expected a slot in \[-1, 64\)"):
        program.replay()


def test_a_changed_number_of_threads_is_refused():
    x, weight, out = torch.zeros(1, 32), torch.zeros(32, 32), torch.zeros(1, 32)
    program = Program()
    with program.record():
        ops.linear(x, weight, out=out)
    before = _C.num_threads()
    try:
        _C.set_num_threads(before + 1)
        with pytest.raises(RuntimeError, match=f"recorded with {before} threads, now there are"):
            program.replay()
    finally:
        _C.set_num_threads(before)
    program.replay()


def test_recording_twice_nested_or_unfinished():
    program = Program()
    nested = pytest.raises(RuntimeError, match="is recording already")
    with program.record(), nested, Program().record():
        pass
    twice = pytest.raises(RuntimeError, match="has been recorded, make a new one")
    with twice, program.record():
        pass
    broken = Program()
    with pytest.raises(ZeroDivisionError), broken.record():
        raise ZeroDivisionError
    with Program().record():  # the thread records nothing any more
        pass
    assert len(broken) == 0


def test_another_thread_is_not_recorded():
    x, weight = torch.zeros(1, 32), torch.zeros(32, 32)
    program = Program()
    with program.record():
        thread = threading.Thread(target=ops.linear, args=(x, weight))
        thread.start()
        thread.join()
    assert len(program) == 0


def test_profile_names_ops_and_counts_bytes():
    x, out = torch.zeros(1, 64), torch.zeros(1, 96)
    weight = ops.pack_weight(torch.zeros(96, 40, dtype=torch.uint8), "q4_1")
    program = Program()
    with program.record():
        ops.linear(x, weight, out=out)
        ops.rms_norm(x, torch.ones(64), out=x)
    linear, norm = program.profile()
    assert linear.name == "linear [96, 64] q4_1" and norm.name == "rms_norm"
    assert linear.nbytes == 96 * 40 + 4 * (64 + 96)
    assert norm.nbytes == 2 * 4 * 64
    assert 0 < linear.seconds < 1 and 0 < norm.seconds < 1
