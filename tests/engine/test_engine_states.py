# SPDX-License-Identifier: Apache-2.0
"""Random walks through everything an engine can be asked: no page is ever lost, no token wrong."""

from __future__ import annotations

from typing import Any

import pytest
from fake_runner import make_engine, make_request, next_token
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lampo.engine.llm_engine import ABORTED, TIMED_OUT
from lampo.engine.snapshot import violations
from lampo.outputs import RequestOutput

PAGE_SIZE = 4
NUM_PAGES = 12
MAX_LEN = NUM_PAGES * PAGE_SIZE
PLANTED = "internal error (ValueError)"

# Many begin alike.
prompts = st.builds(
    lambda prefix, tail: [*range(prefix), *tail],
    st.integers(0, 30),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
)


class Engine(RuleBasedStateMachine):
    """The cache holds tokens, which `FakeRunner` compares with what it should hold."""

    run_ahead = False
    window: int | None = None
    num_slots = 0

    def __init__(self) -> None:
        super().__init__()
        self.engine = make_engine(
            NUM_PAGES,
            PAGE_SIZE,
            max_num_seqs=5,
            max_num_batched_tokens=7,
            run_ahead=self.run_ahead,
            window=self.window,
            num_slots=self.num_slots,
        )
        self.running: dict[str, dict[str, Any]] = {}
        self.pieces: dict[str, dict[int, list[int]]] = {}
        self.count = 0

    @rule(
        prompt=prompts,
        n=st.integers(1, 4),
        max_tokens=st.sampled_from([0, 1, 4, 12, 30]),
        greedy=st.booleans(),
        priority=st.integers(-2, 2),
        scored=st.booleans(),
        salt=st.sampled_from([None, "a"]),
        stop=st.sampled_from([[], list(range(0, 64, 5))]),
    )
    def add(
        self,
        prompt: list[int],
        n: int,
        max_tokens: int,
        greedy: bool,
        priority: int,
        scored: bool,
        salt: str | None,
        stop: list[int],
    ) -> None:
        self.count += 1
        name = f"r{self.count}"
        request = make_request(
            name,
            prompt,
            max_len=MAX_LEN,
            page_size=PAGE_SIZE,
            priority=priority,
            cache_salt=salt,
            n=n,
            max_tokens=max_tokens,
            temperature=0.0 if greedy else 5.0,
            prompt_logprobs=0 if scored else None,
            stop_token_ids=stop,
        )
        self.engine.add(request)
        self.running[name] = {
            "prompt": prompt,
            "n": n,
            "max_tokens": max_tokens,
            "greedy": greedy,
            "stop": stop,
        }
        self.pieces[name] = {i: [] for i in range(n)}

    @rule()
    def add_nothing(self) -> None:
        """A prompt that renders nothing is refused at every entry, and changes nothing."""
        with pytest.raises(ValueError, match="prompt: is empty"):
            make_request("nothing", [])
        request = make_request("nothing", [1])
        request.prompt_token_ids.clear()
        with pytest.raises(ValueError, match="has an empty prompt"):
            self.engine.add(request)
        assert "nothing" not in self.engine._requests

    @rule(steps=st.integers(1, 12))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.take(self.engine.step())
            assert violations(self.engine.snapshot()) == []

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        pieces = self.engine.abort(name)
        assert [p.request for p in pieces if p.request_id == name][-1] is not None
        self.take(pieces)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def pass_a_deadline(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        request = self.engine._requests[name]
        request.deadline = 0.0
        self.engine._timed[name] = request
        self.take(self.engine.step())
        assert name not in self.running

    @rule()
    def fail_a_step(self) -> None:
        """Only the requests of the step fail."""
        self.engine.runner.fail_with = ValueError("planted")
        at_work = {s.request.request_id for s in self.engine.scheduler.running}
        pieces = self.engine.step()
        outputs = [c for p in pieces if p.request is not None for c in p.request.outputs]
        failed = [c for c in outputs if c.finish_reason == "error"]
        assert all(c.error == PLANTED for c in failed)
        if self.engine.runner.fail_with is None:
            assert failed
        else:  # nothing was there to compute
            assert not failed and (self.run_ahead or not at_work)
            self.engine.runner.fail_with = None
        self.take(pieces)

    @rule()
    def interrupt_a_step(self) -> None:
        """Ctrl-C takes nothing from anybody: the same step is made again."""
        self.engine.runner.fail_with = KeyboardInterrupt()
        try:
            self.take(self.engine.step())
        except KeyboardInterrupt:
            assert violations(self.engine.snapshot()) == []
        self.engine.runner.fail_with = None

    @rule(pages=st.booleans(), states=st.booleans())
    def evict(self, pages: bool, states: bool) -> None:
        scheduler = self.engine.scheduler
        if pages:
            scheduler.allocator.drop_cache()
        if states and scheduler.states is not None:
            scheduler.states.drop_saved()

    @invariant()
    def sound(self) -> None:
        assert violations(self.engine.snapshot()) == []

    def take(self, pieces: list[Any]) -> None:
        for piece in pieces:
            self.pieces[piece.request_id][piece.index] += piece.token_ids
            if piece.request is not None:
                self.check(piece.request_id, piece.request)

    def check(self, name: str, result: RequestOutput) -> None:
        request, pieces = self.running.pop(name), self.pieces.pop(name)
        assert [c.token_ids for c in result.outputs] == list(pieces.values())
        for completion in result.outputs:
            expected: list[int] = []
            while len(expected) < len(completion.token_ids):
                expected.append(next_token(request["prompt"] + expected, self.window))
            if request["greedy"]:
                assert completion.token_ids == expected
            stops = [token in request["stop"] for token in completion.token_ids]
            if completion.finish_reason == "stop":
                assert stops.index(True) == len(stops) - 1
            elif completion.finish_reason == "length":
                assert not any(stops)
                room = min(request["max_tokens"], MAX_LEN - len(request["prompt"]))
                assert len(completion.token_ids) == room
            else:
                assert completion.error in (ABORTED, TIMED_OUT, PLANTED)
        if result.prompt_logprobs is not None and result.outputs[0].finish_reason in (
            "length",
            "stop",
        ):
            assert len(result.prompt_logprobs) == len(request["prompt"])

    def teardown(self) -> None:
        """Whoever is left gets to the end, in a bounded number of steps."""
        for _ in range(4000):
            if not self.engine.has_unfinished:
                break
            self.take(self.engine.step())
        assert not self.engine.has_unfinished and not self.running
        allocator = self.engine.scheduler.allocator
        assert allocator.num_available == NUM_PAGES
        assert not self.engine.scheduler.waiting and not self.engine.scheduler.running


_common = {"deadline": None, "suppress_health_check": list(HealthCheck)}
TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=150, stateful_step_count=40, **_common)


class EngineRunningAhead(Engine):
    """Decode steps are launched before the tokens of the one before are read."""

    run_ahead = True


TestEngineRunningAhead = EngineRunningAhead.TestCase
TestEngineRunningAhead.settings = TestEngine.settings


class EngineWithWindow(Engine):
    """A model with windows in all layers: pages behind them are freed."""

    window = 6


TestEngineWithWindow = EngineWithWindow.TestCase
TestEngineWithWindow.settings = TestEngine.settings


class EngineWithWindowRunningAhead(EngineWithWindow):
    run_ahead = True


TestEngineWithWindowRunningAhead = EngineWithWindowRunningAhead.TestCase
TestEngineWithWindowRunningAhead.settings = TestEngine.settings


class EngineWithStates(Engine):
    """A model that keeps a state beside its cache: forks copy it, prefixes and lost sequences
    continue from saved ones."""

    num_slots = 8


TestEngineWithStates = EngineWithStates.TestCase
TestEngineWithStates.settings = TestEngine.settings


class EngineWithStatesAndWindow(EngineWithStates):
    window = 6


TestEngineWithStatesAndWindow = EngineWithStatesAndWindow.TestCase
TestEngineWithStatesAndWindow.settings = settings(
    max_examples=50, stateful_step_count=40, **_common
)


class EngineWithStatesRunningAhead(EngineWithStates):
    run_ahead = True


TestEngineWithStatesRunningAhead = EngineWithStatesRunningAhead.TestCase
TestEngineWithStatesRunningAhead.settings = TestEngine.settings


@pytest.mark.slow
class TestEngineRunningAheadLong(EngineRunningAhead.TestCase):
    settings = settings(max_examples=1000, stateful_step_count=100, **_common)


@pytest.mark.slow
class TestEngineLong(Engine.TestCase):
    settings = settings(max_examples=1000, stateful_step_count=100, **_common)
