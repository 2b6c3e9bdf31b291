# SPDX-License-Identifier: Apache-2.0
"""Saved states: the work that they save, and faults in them that the random walks find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_engine_states
from fake_runner import FakePool, make_engine, make_request
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from lampo.engine.llm_engine import LLMEngine
from lampo.engine.scheduler import Scheduler
from lampo.engine.snapshot import violations
from lampo.engine.state_slots import StateSlots


def run(engine: LLMEngine, name: str, prompt: list[int], **fields: Any) -> list[int]:
    """The request's tokens; the engine's invariants hold after every step."""
    engine.add(make_request(name, prompt, page_size=engine.pool.page_size, **fields))
    tokens: list[int] = []
    while engine.has_unfinished:
        for piece in engine.step():
            tokens += piece.token_ids
        assert violations(engine.snapshot()) == []
    return tokens


def conversation_engine(num_slots: int) -> LLMEngine:
    return make_engine(
        1024, 16, num_slots=num_slots, max_num_seqs=4, max_num_batched_tokens=512, window=None
    )


def test_a_second_turn_computes_its_new_tokens_and_one_distance_at_most() -> None:
    """A conversation of 4,000 tokens and an answer of 100: counted by the runner."""
    engine = conversation_engine(num_slots=4 + 20)
    prompt = [i * 7 % 60 for i in range(4000)]
    answer = run(engine, "first", prompt, max_tokens=100)
    states = engine.scheduler.states
    assert states is not None and states.distance == 512
    before = engine.runner.num_computed
    second = [*prompt, *answer, *range(30)]
    run(engine, "second", second, max_tokens=1)
    assert engine.runner.num_computed - before <= 512 + 30
    assert states.num_restored == 1
    # Within the answer: 100 tokens cross an edge, at 4096.
    assert engine.runner.num_computed - before == len(second) - 4096


def test_the_least_recently_used_state_goes_first() -> None:
    """With two saved states: those of the last conversation, and no others."""
    engine = make_engine(256, 16, num_slots=3, max_num_seqs=1, max_num_batched_tokens=32)
    first, second = ([offset + i % 20 for i in range(100)] for offset in (0, 30))
    run(engine, "a", first, max_tokens=1)
    run(engine, "b", second, max_tokens=1)
    states = engine.scheduler.states
    assert states is not None
    before = engine.runner.num_computed
    run(engine, "c", second, max_tokens=1)
    assert engine.runner.num_computed - before == 100 - 96
    before = engine.runner.num_computed
    run(engine, "d", first, max_tokens=1)
    assert engine.runner.num_computed - before == 100


def test_preempted_and_failed_sequences_continue_from_a_saved_state() -> None:
    engine = make_engine(64, 4, num_slots=12, max_num_seqs=4, max_num_batched_tokens=8)
    prompt = [i % 50 for i in range(60)]
    engine.add(make_request("a", prompt, page_size=4, max_tokens=20))
    for _ in range(9):
        engine.step()
    (sequence,) = engine.scheduler.running
    assert sequence.num_computed > 56
    engine.runner.fail_with = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    before = engine.runner.num_computed
    engine.step()
    assert sequence.num_computed >= 56 and engine.runner.num_computed - before <= 8


def test_without_room_for_saved_states_prefixes_are_computed_again() -> None:
    engine = make_engine(64, 4, num_slots=4, max_num_seqs=4, max_num_batched_tokens=8)
    prompt = [i % 50 for i in range(60)]
    run(engine, "a", prompt, max_tokens=1)
    run(engine, "b", prompt, max_tokens=1)
    assert engine.runner.num_computed == 120


def _saves_under_a_stale_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that is saved twice keeps its first content, whatever its key."""
    save = StateSlots.save

    def planted(self: StateSlots, key: bytes, slot: int) -> None:
        if self._saved:
            other = next(iter(self._saved.values()))
            self._saved[key] = other
            self._saved.popitem(last=False)
        else:
            save(self, key, slot)

    monkeypatch.setattr(StateSlots, "save", planted)


def _off_by_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are saved one token before the edge, under the edge's key."""
    monkeypatch.setattr(
        StateSlots,
        "tokens_to_edge",
        lambda self, position: (-position - 1) % self.distance or self.distance,
    )

    def early(self: Scheduler, sequence: Any) -> None:
        states, size = self.states, self.allocator.page_size
        assert states is not None and sequence.state_slot is not None
        edge = sequence.num_computed + 1
        if states.is_edge(edge) and edge <= len(sequence.token_ids):
            sequence.chain.extend(sequence.token_ids, edge // size)
            states.save(sequence.chain.page(edge // size - 1)[0], sequence.state_slot)

    monkeypatch.setattr(Scheduler, "_free_unseen", early)


def _shared_page_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is not full is not copied for a fork."""
    monkeypatch.setattr(FakePool, "copy_page", lambda self, source, target: None)


def _restores_without_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence that begins with a saved state gets an empty slot."""
    monkeypatch.setattr(StateSlots, "restore", lambda self, key: self.take())


def _forks_without_copying(monkeypatch: pytest.MonkeyPatch) -> None:
    take = StateSlots.take
    monkeypatch.setattr(StateSlots, "take", lambda self, source=None: take(self))


def _loses_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateSlots, "release", lambda self, slot: None)


@pytest.mark.parametrize(
    "plant",
    [
        _saves_under_a_stale_key,
        _off_by_one_token,
        _shared_page_is_written,
        _restores_without_copying,
        _forks_without_copying,
        _loses_a_slot,
    ],
)
def test_random_walks_find_planted_faults(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    plant(monkeypatch)
    quick = settings(
        max_examples=100,
        stateful_step_count=30,
        phases=[Phase.generate],  # a fault is found, not made small
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(Exception):  # noqa: B017, PT011 (an assertion, or a lost slot)
        run_state_machine_as_test(test_engine_states.EngineWithStates, settings=quick)
