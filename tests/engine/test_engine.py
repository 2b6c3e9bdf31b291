# SPDX-License-Identifier: Apache-2.0
"""The engine step by step: what runs together, what is shared, what fails alone."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from fake_runner import make_engine, make_request, next_token

from lampo import LLM, SamplingParams
from lampo.engine.llm_engine import ABORTED, TIMED_OUT, LLMEngine
from lampo.engine.snapshot import violations
from lampo.outputs import CompletionOutput, RequestOutput


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    make_checkpoint(path)
    return path


def finish(engine: LLMEngine) -> dict[str, RequestOutput]:
    results = {}
    while engine.has_unfinished:
        for piece in engine.step():
            if piece.request is not None:
                results[piece.request_id] = piece.request
        assert violations(engine.snapshot()) == []
    return results


def expected(prompt: list[int], count: int) -> list[int]:
    found: list[int] = []
    for _ in range(count):
        found.append(next_token(prompt + found))
    return found


@pytest.fixture(scope="module")
def requests() -> list[tuple[list[int], SamplingParams]]:
    rng = random.Random(5)
    base = [rng.randrange(320) for _ in range(120)]
    requests = []
    for i in range(24):
        prompt = base[: rng.randrange(100)] + [rng.randrange(320) for _ in range(1 + i % 5)]
        settings: dict[str, Any] = {"temperature": 0.0 if i % 3 else 1.5, "seed": i}
        if i % 4 == 1:
            settings |= {"repetition_penalty": 1.3, "frequency_penalty": 0.5}
        if i % 5 == 2:
            settings |= {"logit_bias": {7: 3.0, 8: -100.0}, "min_tokens": 4}
        if i % 7 == 3:
            settings |= {"prompt_logprobs": 1}
        params = SamplingParams(
            n=1 + i % 3, max_tokens=5 + i, ignore_eos=True, logprobs=i % 2, **settings
        )
        requests.append((prompt, params))
    return requests


@pytest.fixture(scope="module")
def alone(folder, requests) -> Iterator[list[RequestOutput]]:
    with LLM(folder, page_size=16, enable_prefix_caching=False) as llm:
        yield [llm.generate([prompt], params)[0] for prompt, params in requests]


@pytest.mark.long
@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize(("num_pages", "chunk"), [(16, 7), (24, 64), (400, 512)])
def test_equal_alone_and_together(folder, requests, alone, num_pages, chunk, prefix_caching):
    """With a model: every request gets, bit for bit, what it gets alone."""
    with LLM(folder, page_size=16) as llm:
        page = llm.shared_engine().engine.pool.bytes_per_page
    with LLM(
        folder,
        page_size=16,
        kv_cache_memory=num_pages * page,
        max_num_seqs=8,
        max_num_batched_tokens=chunk,
        enable_prefix_caching=prefix_caching,
    ) as llm:
        engine = llm.shared_engine().engine
        rng = random.Random(num_pages)
        results: dict[str, RequestOutput] = {}
        pieces: dict[tuple[str, int], list[int]] = {}
        pending = list(enumerate(requests))
        while pending or engine.has_unfinished:
            while pending and rng.random() < 0.4:
                i, (prompt, params) = pending.pop(0)
                priority = rng.randrange(3)
                engine.add(llm.request(prompt, params, request_id=str(i), priority=priority))
            for piece in engine.step():
                pieces.setdefault((piece.request_id, piece.index), []).extend(piece.token_ids)
                if piece.request is not None:
                    results[piece.request_id] = piece.request
            assert violations(engine.snapshot()) == []
        stats = engine.stats()
    assert stats.num_preemptions > 0 or num_pages > 16
    assert (stats.num_cached_prompt_tokens > 0) == prefix_caching
    for i, one in enumerate(alone):
        together = results[str(i)]
        assert together.outputs == one.outputs
        assert together.prompt_logprobs == one.prompt_logprobs
        for completion in one.outputs:
            assert pieces[str(i), completion.index] == completion.token_ids


def test_a_second_prompt_is_found_in_the_cache(folder):
    prompt = list(range(100))
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=2)
    with LLM(folder, page_size=16) as llm:
        first, second = (llm.generate([prompt], params)[0] for _ in range(2))
        assert (first.metrics.num_cached_tokens, second.metrics.num_cached_tokens) == (0, 96)
        assert first.outputs == second.outputs
        whole_pages = llm.generate([prompt[:96]], params)[0]
        assert whole_pages.metrics.num_cached_tokens == 80, "the last token is computed"
        # Generated tokens are found too, as the beginning of the next turn.
        turn = prompt + first.outputs[0].token_ids + list(range(30))
        assert llm.generate([turn], params)[0].metrics.num_cached_tokens == 96


def test_completions_share_the_prompt(folder):
    prompt = list(range(100))
    params = SamplingParams(temperature=2.0, seed=1, n=4, max_tokens=20, ignore_eos=True)
    with LLM(folder, page_size=16, enable_prefix_caching=False) as llm:
        engine = llm.shared_engine().engine
        engine.add(llm.request(prompt, params, request_id="a"))
        engine.step()
        assert engine.stats().num_running == 4
        used = engine.pool.num_pages - engine.stats().num_free_pages
        assert used == 7, "six full pages and one that is not"
        engine.step()
        used = engine.pool.num_pages - engine.stats().num_free_pages
        assert used == 10, "the last page is copied when it is written"
        outputs = finish(engine)["a"].outputs
        assert len({tuple(c.token_ids) for c in outputs}) == 4


def test_prompts_do_not_stop_those_that_decode():
    engine = make_engine(64, 4, max_num_seqs=4, max_num_batched_tokens=8)
    engine.add(make_request("short", [1, 2], max_tokens=20))
    engine.step()
    engine.add(make_request("long", list(range(60)), max_tokens=3))
    for _ in range(7):
        pieces = engine.step()
        assert [(p.request_id, len(p.token_ids)) for p in pieces] == [("short", 1)]
    assert {p.request_id for p in engine.step()} == {"short", "long"}


def test_first_come_first_served_and_priorities():
    engine = make_engine(64, 4, max_num_seqs=1)
    order = [("late", 0), ("urgent", -1), ("idle", 1), ("last", 0)]
    for name, priority in order:
        engine.add(make_request(name, [1, 2], max_tokens=2, priority=priority))
    assert list(finish(engine)) == ["urgent", "late", "last", "idle"]


def test_a_low_priority_is_overtaken_for_a_bounded_time(monkeypatch):
    engine = make_engine(64, 4, max_num_seqs=1)
    now = 1000.0
    monkeypatch.setattr("lampo.engine.llm_engine.time.monotonic", lambda: now)
    engine.add(make_request("idle", [1], max_tokens=1, priority=2))
    now += 19
    engine.add(make_request("overtakes", [1], max_tokens=1))
    now += 2
    engine.add(make_request("comes too late", [1], max_tokens=1))
    assert list(finish(engine)) == ["overtakes", "idle", "comes too late"]


def test_who_came_first_keeps_its_pages():
    engine = make_engine(12, 4, max_num_seqs=4)
    prompts = {name: [i] * 8 for i, name in enumerate(("first", "second", "third"))}
    for name, prompt in prompts.items():
        engine.add(make_request(name, prompt, max_tokens=24))
    results = finish(engine)
    assert engine.stats().num_preemptions > 0
    assert next(iter(results)) == "first"
    for name, prompt in prompts.items():
        assert results[name].outputs[0].token_ids == expected(prompt, 24)


def test_running_ahead():
    """Tokens come a step late, and the step after one that turns out to be the last is void."""
    engine = make_engine(64, 4, run_ahead=True)
    ends = expected([5, 6], 9)[6:7]
    engine.add(make_request("long", [1, 2, 3], max_tokens=12))
    engine.add(make_request("stops", [5, 6], max_tokens=20, stop_token_ids=ends))
    results = finish(engine)
    assert results["long"].outputs[0].token_ids == expected([1, 2, 3], 12)
    assert results["stops"].outputs[0].token_ids == expected([5, 6], 7)
    assert engine.runner.num_ahead == 6 + 3  # until "stops" is known to have ended; then alone
    assert engine.runner.num_computed == 3 + 11 + 2 + 7
    assert engine.scheduler.allocator.num_available == 64


def test_not_ahead_where_the_token_is_needed():
    for fields in ({"logprobs": 1}, {"repetition_penalty": 1.5}, {"min_tokens": 3}):
        engine = make_engine(64, 4, run_ahead=True)
        engine.add(make_request("a", [1, 2, 3], max_tokens=6, **fields))
        assert len(finish(engine)["a"].outputs[0].token_ids) == 6
        assert engine.runner.num_ahead == (2 if "min_tokens" in fields else 0)


def test_more_completions_than_run_at_once():
    engine = make_engine(64, 4, max_num_seqs=3)
    engine.add(make_request("many", [1, 2, 3, 4, 5], n=8, max_tokens=4))
    result = finish(engine)["many"]
    assert [c.token_ids for c in result.outputs] == [expected([1, 2, 3, 4, 5], 4)] * 8
    assert [c.index for c in result.outputs] == list(range(8))


def completion(pieces: list[Any], name: str) -> CompletionOutput:
    (request,) = [p.request for p in pieces if p.request_id == name and p.request is not None]
    return request.outputs[0]


@pytest.mark.parametrize("state", ["waiting", "in its prompt", "decoding", "preempted", "forked"])
def test_abort_in_every_state(state):
    engine = make_engine(8, 4, max_num_seqs=2, max_num_batched_tokens=8)
    prompt, n = [1] * 12, 2 if state == "forked" else 1
    if state in ("waiting", "preempted"):
        engine.add(make_request("other", [3] * 12, max_tokens=18))
        engine.step()
        engine.step()
    engine.add(make_request("it", prompt, n=n, max_tokens=12))
    steps = {"waiting": 0, "in its prompt": 1, "decoding": 4, "forked": 4, "preempted": 30}[state]
    for _ in range(steps):
        if state != "preempted" or not engine.scheduler.num_preemptions:
            engine.step()
    if state == "preempted":
        assert engine.scheduler.num_preemptions
    found = engine.abort("it")
    ended = completion(found, "it")
    assert (ended.finish_reason, ended.error) == ("abort", ABORTED)
    assert engine.abort("it") == []
    assert violations(engine.snapshot()) == []
    assert set(finish(engine)) <= {"other"}
    assert engine.scheduler.allocator.num_available == 8


def test_deadlines(monkeypatch):
    engine = make_engine(64, 4)
    now = 0.0
    monkeypatch.setattr("lampo.engine.llm_engine.time.monotonic", lambda: now)
    engine.add(make_request("timed", [1], max_tokens=100, timeout=5.0))
    engine.add(make_request("free", [1], max_tokens=10))
    engine.step()
    engine.step()
    now = 5.0
    ended = completion(engine.step(), "timed")
    assert (ended.finish_reason, ended.error, len(ended.token_ids)) == ("abort", TIMED_OUT, 2)
    assert finish(engine)["free"].outputs[0].finish_reason == "length"


def test_a_failing_step_fails_those_it_works_on(caplog):
    engine = make_engine(64, 4, max_num_seqs=2)
    for name in ("a", "b", "waits"):
        engine.add(make_request(name, [1, 2, 3], max_tokens=5))
    engine.step()
    engine.runner.fail_with = RuntimeError("/secret/path")
    pieces = engine.step()
    for name in ("a", "b"):
        ended = completion(pieces, name)
        assert ended.finish_reason == "error"
        assert ended.error == "internal error (RuntimeError)", "the message stays in the log"
        assert ended.token_ids == expected([1, 2, 3], 1)
    assert "/secret/path" in caplog.text
    assert finish(engine)["waits"].outputs[0].token_ids == expected([1, 2, 3], 5)
    assert engine.stats().finished == {"error": 2, "length": 1}


def test_a_scheduler_that_fails_does_not_turn_for_ever(monkeypatch):
    engine = make_engine(64, 4)
    engine.add(make_request("a", [1]))
    monkeypatch.setattr(engine.scheduler, "plan", lambda: 1 / 0)
    assert completion(engine.step(), "a").error == "internal error (ZeroDivisionError)"
    assert not engine.has_unfinished


def test_names_are_unique_among_the_unfinished():
    engine = make_engine(64, 4)
    engine.add(make_request("a", [1]))
    with pytest.raises(ValueError, match="request_id: 'a' is in use"):
        engine.add(make_request("a", [1]))
    finish(engine)
    engine.add(make_request("a", [1]))


def test_a_request_is_used_once():
    engine = make_engine(64, 4)
    request = make_request("a", [1])
    engine.add(request)
    with pytest.raises(ValueError, match="request_id: 'a' is in use"):
        engine.add(request)
    finish(engine)
    with pytest.raises(ValueError, match="request: 'a' has ended"):
        engine.add(request)
    assert not engine.has_unfinished


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"priority": 1001}, "priority: expected a value in"),
        ({"priority": 0.5}, "priority: expected an integer"),
        ({"timeout": 0.0}, "timeout: expected a value in"),
        ({"cache_salt": ""}, "cache_salt: expected 1 to 256 characters"),
        ({"request_id": "x" * 257}, "request_id: expected 1 to 256 characters"),
        ({"prompt": []}, "prompt: is empty"),
        ({"prompt": [320]}, r"prompt\[0\]: expected a value in"),
        ({"prompt": [1] * 256}, "prompt: has 256 tokens"),
    ],
)
def test_bad_requests(folder, fields, error):
    with LLM(folder) as llm:
        assert llm.max_model_len == 256
        with pytest.raises((ValueError, TypeError), match=error):
            llm.request(**{"prompt": [1], "params": SamplingParams(max_tokens=2)} | fields)


def test_a_request_takes_its_own_time(folder):
    with LLM(folder) as llm:
        engine = llm.shared_engine().engine
        before = time.perf_counter()
        requests = [llm.request([1], SamplingParams(max_tokens=2)) for _ in range(2)]
        assert len({request.request_id for request in requests}) == 2
        for request in requests:
            engine.add(request)
        results = finish(engine)
        for request in requests:
            metrics = results[request.request_id].metrics
            assert 0 < metrics.time_to_first_token <= time.perf_counter() - before


def test_a_request_that_needs_nothing():
    engine = make_engine(64, 4)
    engine.add(make_request("a", [1], max_tokens=0, n=2))
    (first, last) = engine.step()
    assert first.request is None and last.request is not None
    assert engine.stats().num_steps == 0


def test_the_pool_hears_when_nothing_is_to_be_done():
    engine = make_engine(num_pages=8, page_size=4)
    assert engine.pool.idle_after == 0
    engine.add(make_request("a", [1] * 5, max_tokens=5))
    engine.add(make_request("b", [2] * 3, max_tokens=2))
    while engine.has_unfinished:
        assert engine.pool.idle_after is None or engine.stats().num_steps == 0
        engine.step()
    assert engine.pool.idle_after == 4  # 3 for 9 tokens and 1 for 4
    engine.step()
    assert engine.pool.idle_after == 4


def test_stats_count():
    engine = make_engine(64, 4)
    for name in "ab":
        engine.add(make_request(name, list(range(9)), max_tokens=3, n=2))
        finish(engine)
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_cached_prompt_tokens) == (18, 8)
    assert (stats.num_output_tokens, stats.finished) == (12, {"length": 4})
    assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages == 64
