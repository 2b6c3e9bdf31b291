# SPDX-License-Identifier: Apache-2.0
"""Random walks through an engine with a real model of each kind of layer: the tokens of every
request are those that it gets alone, in a model without a prefix cache, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from checkpoints import SHAPE, make_checkpoint
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from safetensors.torch import load_file, save_file
from test_architectures import case

from lampo import LLM, SamplingParams
from lampo.engine.snapshot import violations

_PAGES = 24  # of 4 tokens: less than the requests of a walk want at once
_OPTIONS: dict[str, Any] = {"dtype": "float32", "page_size": 4, "max_model_len": 64}
_TEXT = torch.randint(0, SHAPE["vocab_size"], (64,), generator=torch.Generator()).tolist()
# Many begin alike, some of them beyond several saved states.
_prompts = st.builds(
    lambda prefix, tail: (*_TEXT[:prefix], *tail),
    st.integers(0, 36),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
)


class Walk(RuleBasedStateMachine):
    """Everything that can happen to a request, on the models of one checkpoint."""

    folder: ClassVar[Path]
    alone: ClassVar[LLM]
    expected: ClassVar[dict[Any, list[list[int]]]]

    def __init__(self) -> None:
        super().__init__()
        page = self.alone.shared_engine().engine.pool.bytes_per_page
        self.llm = LLM(
            self.folder,
            max_num_seqs=4,
            max_num_batched_tokens=8,
            kv_cache_memory=_PAGES * page,
            **_OPTIONS,
        )
        self.engine = self.llm.shared_engine().engine
        self.asked: dict[str, tuple[Any, ...]] = {}

    @rule(
        prompt=_prompts,
        n=st.integers(1, 3),
        max_tokens=st.sampled_from([1, 5, 20]),
        seed=st.integers(0, 1),
    )
    def add(self, prompt: tuple[int, ...], n: int, max_tokens: int, seed: int) -> None:
        request = self.llm.request(list(prompt), _params(n, max_tokens, seed))
        self.engine.add(request)
        self.asked[request.request_id] = prompt, n, max_tokens, seed

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.take(self.engine.step())
            assert violations(self.engine.snapshot()) == []

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        del self.asked[name]
        self.take(self.engine.abort(name))

    @rule(pages=st.booleans())
    def evict(self, pages: bool) -> None:
        scheduler = self.engine.scheduler
        if pages:
            scheduler.allocator.drop_cache()
        elif scheduler.states is not None:
            scheduler.states.drop_saved()

    @rule(fails=st.booleans())
    def fail_after_computing(self, fails: bool) -> None:
        """The caches have been written, then the step fails, or is interrupted."""
        error: BaseException = ValueError("planted") if fails else KeyboardInterrupt()
        commit = self.engine.scheduler.commit

        def failing(plan: Any) -> None:
            self.engine.scheduler.commit = commit  # type: ignore[method-assign]
            raise error

        self.engine.scheduler.commit = failing  # type: ignore[method-assign]
        in_step = {s.request.request_id for s in self.engine.scheduler.running}
        in_step |= {s.request.request_id for s in self.engine.scheduler.waiting}
        try:
            pieces = self.engine.step()
        except KeyboardInterrupt:
            pieces = []
        self.engine.scheduler.commit = commit  # type: ignore[method-assign]
        for piece in pieces:
            if piece.request is not None and piece.finish_reason == "error":
                assert piece.request_id in in_step
                del self.asked[piece.request_id]
        self.take(pieces)

    @invariant()
    def sound(self) -> None:
        assert violations(self.engine.snapshot()) == []

    def take(self, pieces: list[Any]) -> None:
        for piece in pieces:
            if piece.request is not None and piece.request_id in self.asked:
                asked = self.asked.pop(piece.request_id)
                if asked not in self.expected:
                    prompt, *params = asked
                    (result,) = self.alone.generate([list(prompt)], _params(*params))
                    self.expected[asked] = [c.token_ids for c in result.outputs]
                assert [c.token_ids for c in piece.request.outputs] == self.expected[asked]

    def teardown(self) -> None:
        while self.engine.has_unfinished:
            self.take(self.engine.step())
        assert not self.asked
        scheduler = self.engine.scheduler
        assert scheduler.allocator.num_available == self.engine.pool.num_pages
        if scheduler.states is not None:
            assert scheduler.states.num_available == self.engine.pool.num_slots
        self.llm.close()


def _params(n: int, max_tokens: int, seed: int) -> SamplingParams:
    return SamplingParams(
        n=n, max_tokens=max_tokens, seed=seed, temperature=0.8, ignore_eos=True, logprobs=None
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "mistral", "lfm2", "qwen3_5_text"])
def test_walks(tmp_path: Path, name: str) -> None:
    make_checkpoint(tmp_path, **case(name) | ({"sliding_window": 10} if name == "mistral" else {}))
    options = {"max_num_seqs": 1, "enable_prefix_caching": False}
    with LLM(tmp_path, **options, **_OPTIONS) as alone:
        kind = type("Kind", (Walk,), {"folder": tmp_path, "alone": alone, "expected": {}})
        run_state_machine_as_test(
            kind,
            settings=settings(
                max_examples=8,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5_text"])
def test_a_second_turn_on_a_model(tmp_path: Path, name: str) -> None:
    """From a saved state, the same tokens as from the beginning."""
    make_checkpoint(tmp_path, **case(name))
    options = _OPTIONS | {"max_model_len": 200, "max_num_batched_tokens": 16}
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompt = _TEXT + _TEXT
    with LLM(tmp_path, **options) as llm:
        answer = llm.generate([prompt], params)[0].outputs[0].token_ids
        second = [*prompt, *answer, 1, 2, 3]
        again = llm.generate([second], params)[0]
        states = llm.shared_engine().engine.scheduler.states
        assert states is not None and states.num_restored == 1
        assert again.metrics.num_cached_tokens == len(second) // 16 * 16
    with LLM(tmp_path, enable_prefix_caching=False, **options) as llm:
        assert llm.generate([second], params)[0].outputs[0] == again.outputs[0]


@pytest.mark.parametrize("name", ["lfm2", "qwen3_5_text"])
def test_a_state_that_is_not_finite(tmp_path: Path, name: str) -> None:
    """Its request ends with an error; another beside it, and the next of its slot, do not."""
    make_checkpoint(tmp_path, tied=False, **case(name))
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["model.embed_tokens.weight"][300] = float("inf")
    save_file(state, path, metadata={"format": "pt"})
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    good, bad = [5] * 20, [7, 300, *([9] * 30)]
    with LLM(tmp_path, max_num_seqs=2, **_OPTIONS) as llm:
        (alone,) = llm.generate([good], params, use_cache=False)
        failed, beside = llm.generate([bad, good], params)
        assert failed.outputs[0].finish_reason == "error" and failed.outputs[0].error
        assert failed.outputs[0].token_ids == []
        after = llm.generate([good, [5, *good]], params)
        assert beside.outputs[0].token_ids == alone.outputs[0].token_ids
        assert after[0].outputs[0].token_ids == alone.outputs[0].token_ids
        assert after[1].outputs[0].finish_reason == "length"
