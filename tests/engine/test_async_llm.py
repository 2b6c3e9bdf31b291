# SPDX-License-Identifier: Apache-2.0
"""Many requests from asyncio: the same tokens, and no request harms another."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint

from lampo import LLM, AsyncLLM, SamplingParams
from lampo.async_llm import EngineDeadError, QueueFullError, RequestStream
from lampo.engine.snapshot import violations
from lampo.outputs import RequestOutput, StreamOutput

PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
LONG = dataclasses.replace(PARAMS, max_tokens=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    make_checkpoint(path)
    return path


@pytest.fixture
def run(folder) -> Iterator[Callable[..., Any]]:
    """Runs a coroutine function on a fresh AsyncLLM; afterwards, no page may be missing."""

    def run(test: Callable[[AsyncLLM], Awaitable[Any]], **options: Any) -> Any:
        llm = LLM(folder, page_size=16, max_num_seqs=4)
        engine = llm.shared_engine().engine
        model = AsyncLLM(llm, **options)
        try:
            found = asyncio.run(asyncio.wait_for(test(model), 60))
        finally:
            model.close()
        assert violations(engine.snapshot()) == []
        assert engine.scheduler.allocator.num_available == engine.pool.num_pages
        assert not engine.has_unfinished
        return found

    yield run
    assert not [t for t in threading.enumerate() if t.name == "lampo-steps"]


def slow_down(model: AsyncLLM, seconds: float) -> None:
    """Makes steps so slow that what a test does next comes before the last of 200 tokens."""
    runner: Any = model.llm.shared_engine().engine.runner
    for name in ("run", "decode"):
        original = getattr(runner, name)

        def slow(*args: Any, original: Any = original, **options: Any) -> Any:
            time.sleep(seconds)
            return original(*args, **options)

        setattr(runner, name, slow)


async def collect(stream: RequestStream) -> RequestOutput:
    return whole([piece async for piece in stream])


def whole(pieces: list[StreamOutput]) -> RequestOutput:
    """The result of a request, after a check of its pieces."""
    result = pieces[-1].request
    assert result is not None
    for completion in result.outputs:
        own = [p for p in pieces if p.index == completion.index]
        assert "".join(p.text for p in own) == completion.text
        assert [t for p in own for t in p.token_ids] == completion.token_ids
        assert [p.finish_reason for p in own[:-1]] == [None] * (len(own) - 1)
    return result


def test_unread_pieces_are_joined(run):
    """A reader that is slow gets larger pieces, and the queue stays short."""

    async def test(model: AsyncLLM) -> None:
        params = dataclasses.replace(LONG, n=2, logprobs=1, seed=1)
        stream = await model.add_request("Hello", params)
        while model.stats().num_output_tokens < 400:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(stream._pieces) <= 2 * (200 // 64 + 2)
        pieces = [piece async for piece in stream]
        assert max(len(piece.token_ids) for piece in pieces) >= 64
        for completion in whole(pieces).outputs:
            own = [p for p in pieces if p.index == completion.index]
            assert [table for p in own for table in p.logprobs or []] == completion.logprobs
            assert [n for p in own for n in p.num_kept or []] == completion.num_kept
            assert own[-1].finish_reason == "length"

    run(test)


def test_many_at_once_equal_one_after_the_other(run, folder):
    prompts = [f"{'word ' * (i % 7)}number {i}" for i in range(30)]
    params = dataclasses.replace(PARAMS, temperature=1.0, seed=3, n=2)
    with LLM(folder) as llm:
        expected = [o.outputs for o in llm.generate(prompts, params)]

    async def test(model: AsyncLLM) -> list[RequestOutput]:
        streams = [await model.add_request(p, params) for p in prompts]
        return await asyncio.gather(*map(collect, streams))

    assert [r.outputs for r in run(test)] == expected


def test_chat_and_what_a_stream_knows(run):
    async def test(model: AsyncLLM) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        stream = await model.chat(messages, PARAMS, request_id="mine")
        assert stream.request_id == "mine"
        assert stream.prompt_token_ids == model.llm.encode_chat(messages)
        with pytest.raises(ValueError, match="request_id: 'mine' is in use"):
            await model.add_request("x", request_id="mine")
        result = await collect(stream)
        assert result.outputs == model.llm.chat(messages, PARAMS)[0].outputs
        with pytest.raises(StopAsyncIteration):
            await stream.__anext__()

    run(test)


@pytest.mark.parametrize("how", ["aclose", "cancel", "with", "abort"])
def test_leaving_a_stream_frees_its_pages(run, how):
    async def test(model: AsyncLLM) -> None:
        slow_down(model, 0.02)
        stream = await model.add_request("Hello", LONG)
        await stream.__anext__()
        assert model.stats().num_running == 1
        if how == "aclose":
            await stream.aclose()
            await stream.aclose()
        elif how == "with":
            async with stream:
                pass
        elif how == "abort":
            model.abort(stream.request_id)
            last = [piece async for piece in stream][-1]
            assert last.finish_reason == "abort" and last.request is not None
        else:

            async def read() -> None:
                async for _ in stream:
                    pass

            task = asyncio.create_task(read())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        while model.stats().num_running:
            await asyncio.sleep(0.005)
        assert model.stats().finished["abort"] == 1

    run(test)


def test_a_time_limit(run):
    async def test(model: AsyncLLM) -> RequestOutput:
        slow_down(model, 0.02)
        return await collect(await model.add_request("Hello", LONG, timeout=0.2))

    completion = run(test).outputs[0]
    assert completion.finish_reason == "abort" and "time limit" in completion.error
    assert 1 <= len(completion.token_ids) < 100


def test_a_full_queue(run):
    async def test(model: AsyncLLM) -> None:
        slow_down(model, 0.01)
        streams: list[RequestStream] = []

        async def too_many() -> None:
            for _ in range(20):
                streams.append(await model.add_request("Hello", LONG))

        with pytest.raises(QueueFullError, match="2 requests are waiting") as caught:
            await too_many()
        assert caught.value.retry_after > 0
        assert len(streams) >= 2
        for stream in streams:
            await stream.aclose()
        while model.stats().finished.get("abort", 0) < len(streams):
            await asyncio.sleep(0.005)
        await collect(await model.add_request("Hello", PARAMS))

    run(test, max_waiting=2)


def test_a_planted_error_fails_its_step_alone(run):
    async def test(model: AsyncLLM) -> None:
        runner: Any = model.llm.shared_engine().engine.runner
        slow_down(model, 0.02)
        stream = await model.add_request("Hello", LONG)
        await stream.__anext__()
        decode, runner.decode = runner.decode, lambda sequences: 1 / 0
        last = [piece async for piece in stream][-1]
        assert last.finish_reason == "error"
        assert last.request.outputs[0].error == "internal error (ZeroDivisionError)"
        runner.decode = decode
        assert model.health().alive and not model.health().failing
        result = await collect(await model.add_request("Hello", PARAMS))
        assert result.outputs[0].finish_reason == "length"

    run(test)


def test_steps_that_all_fail_are_seen(run):
    """As on a GPU whose context is lost: every request ends, and the health says so."""

    async def test(model: AsyncLLM) -> None:
        runner: Any = model.llm.shared_engine().engine.runner
        run_, runner.run = runner.run, lambda *_, **__: 1 / 0
        for i in range(4):
            assert model.health().failing == (i >= 3)
            result = await collect(await model.add_request("Hello", PARAMS))
            assert result.outputs[0].finish_reason == "error"
        runner.run = run_
        await collect(await model.add_request("Hello", PARAMS))
        assert not model.health().failing

    run(test)


def test_a_dead_loop_is_seen_and_ends_every_stream(run):
    async def test(model: AsyncLLM) -> None:
        engine: Any = model.llm.shared_engine().engine
        slow_down(model, 0.02)
        stream = await model.add_request("Hello", LONG)
        await stream.__anext__()
        step, engine.step = engine.step, lambda: 1 / 0  # not what a runner can cause
        assert [piece async for piece in stream][-1].finish_reason == "abort"
        engine.step = step
        assert not model.health().alive
        with pytest.raises(EngineDeadError):
            await model.add_request("Hello")

    run(test)


def test_the_heartbeat_shows_a_step_that_hangs(run):
    async def test(model: AsyncLLM) -> None:
        assert model.health().alive
        slow_down(model, 0.5)
        stream = await model.add_request("Hello", PARAMS)
        await asyncio.sleep(0.3)
        health = model.health()
        assert health.busy and health.heartbeat_age > 0.1
        await stream.aclose()

    run(test)


def test_drain_waits_and_refuses(run):
    async def test(model: AsyncLLM) -> None:
        slow_down(model, 0.005)
        task = asyncio.create_task(collect(await model.add_request("Hello", PARAMS)))
        draining = asyncio.create_task(model.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(EngineDeadError, match="being closed"):
            await model.add_request("Hello")
        assert await draining
        assert (await task).outputs[0].finish_reason == "length"

    run(test)


def test_drain_aborts_what_takes_too_long(run):
    async def test(model: AsyncLLM) -> RequestOutput:
        slow_down(model, 0.02)
        task = asyncio.create_task(collect(await model.add_request("Hello", LONG)))
        assert not await model.drain(0.1)
        return await task

    assert run(test).outputs[0].finish_reason == "abort"


def test_close_ends_running_streams(folder):
    async def test() -> None:
        model = AsyncLLM(LLM(folder))
        slow_down(model, 0.02)
        stream = await model.add_request("Hello", LONG)
        await stream.__anext__()
        await asyncio.to_thread(model.close)
        model.close()
        assert [piece async for piece in stream][-1].finish_reason == "abort"
        with pytest.raises(EngineDeadError):
            await model.add_request("Hello")

    asyncio.run(test())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": [999]}, r"prompt\[0\]: expected a value in"),
        ({"prompt": "a", "priority": 5000}, "priority: expected a value in"),
        ({"prompt": "a", "priority": 1.5}, "priority: expected an integer"),
        ({"prompt": "a", "timeout": float("nan")}, "timeout: expected a value in"),
        ({"prompt": "a", "timeout": 0}, "timeout: expected a value in"),
        ({"prompt": "a", "cache_salt": "s" * 300}, "cache_salt: expected 1 to 256 characters"),
        ({"prompt": "a", "request_id": ""}, "request_id: expected 1 to 256 characters"),
        ({"prompt": [1] * 300}, "prompt: has 300 tokens"),
    ],
)
def test_bad_arguments_never_reach_the_engine(run, arguments, message):
    async def test(model: AsyncLLM) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            await model.add_request(**arguments)
        assert not model.llm.shared_engine().engine.has_unfinished

    run(test)


def test_direct_calls_beside_it(run):
    """Threads that use the LLM itself take turns with the loop."""

    async def test(model: AsyncLLM) -> None:
        streams = [await model.add_request("Hello", LONG) for _ in range(3)]
        direct = [asyncio.to_thread(model.llm.generate, "Hello", LONG) for _ in range(2)]
        *results, first, second = await asyncio.gather(*map(collect, streams), *direct)
        for result in (*results, first[0], second[0]):
            assert result.outputs == results[0].outputs

    run(test)
