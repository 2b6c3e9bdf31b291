# SPDX-License-Identifier: Apache-2.0
"""`lampo bench serve`: what is sent, what is measured, what is told."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint
from fake_async_llm import FakeAsyncLLM
from http_server import Running, running

from lampo.bench.load import Record, run_load
from lampo.bench.summary import Spread, percentile, summarize
from lampo.bench.targets import HTTPServer, InProcess
from lampo.bench.workload import Call, Length, arrivals, draw_calls
from lampo.cli.main import main


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    engine = FakeAsyncLLM(tmp_path_factory.mktemp("tiny"), delay=0.01)
    with running(engine, api_keys=("key",)) as found:
        yield found


def test_lengths() -> None:
    rng = random.Random(0)
    drawn = [Length.parse("x", "3-7").draw(rng) for _ in range(200)]
    assert set(drawn) == {3, 4, 5, 6, 7}
    assert {Length.parse("x", "9").draw(rng) for _ in range(9)} == {9}
    assert [str(Length.parse("x", text)) for text in ("9", "3-7", "4-4")] == ["9", "3-7", "4"]
    for bad in ("", "0", "-3", "7-3", "3-", "a", "1.5", "3-7-9", "99999999"):
        with pytest.raises(ValueError, match=r"^input_len: "):
            Length.parse("input_len", bad)


def test_prompts() -> None:
    def draw(**more: Any) -> list[Call]:
        lengths = Length(10, 20), Length(5, 5)
        return draw_calls(50, *lengths, token_ids=[7, 8, 9], **more)

    calls = draw(prefix=8, seed=1)
    assert calls == draw(prefix=8, seed=1)
    assert calls != draw(prefix=8, seed=2)
    assert len({tuple(c.prompt[:8]) for c in calls + draw(prefix=8, seed=2)}) == 1
    assert len({tuple(c.prompt) for c in calls}) > 40
    assert {len(c.prompt) for c in calls} == set(range(10, 21))
    assert {c.max_tokens for c in calls} == {5}
    assert {token for c in calls for token in c.prompt} == {7, 8, 9}
    assert {len(c.prompt) for c in draw(prefix=1000)} == set(range(10, 21))


def test_arrivals() -> None:
    times = arrivals(4000, 20.0, seed=3)
    gaps = np.diff(times)
    assert times[0] == 0
    assert (gaps >= 0).all()
    assert abs(gaps.mean() - 0.05) < 0.005
    assert abs(gaps.std() - 0.05) < 0.005  # as a Poisson process has it
    assert arrivals(3, None) == [0.0, 0.0, 0.0]


def test_percentiles() -> None:
    rng = random.Random(5)
    for count in (1, 2, 3, 10, 101):
        values = [rng.random() for _ in range(count)]
        for percent in (0, 50, 90, 99, 100):
            assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))
        assert Spread.of(values).p50 == pytest.approx(statistics.median(values))  # type: ignore[union-attr]
    assert Spread.of([]) is None


def test_summary() -> None:
    one = Record(10, 1.0, 3.0, [1.5, 2.0, 3.0], num_output_tokens=3, num_cached_tokens=4)
    two = Record(20, 2.0, 5.0, [5.0], num_output_tokens=1)
    bad = Record(99, 0.0, 9.0, error="429: too many")
    found = summarize([one, two, bad])
    assert (found.num_requests, found.num_failed, found.errors) == (2, 1, ["429: too many"])
    assert (found.num_prompt_tokens, found.num_cached_tokens, found.num_output_tokens) == (30, 4, 4)
    assert found.duration == 4.0
    assert found.requests_per_second == 0.5
    assert found.output_tokens_per_second == 1.0
    assert found.total_tokens_per_second == 8.5
    assert found.time_to_first_token.mean == pytest.approx(1.75)  # type: ignore[union-attr]
    assert found.time_per_output_token.mean == pytest.approx(0.75)  # type: ignore[union-attr]
    assert found.inter_token_latency.mean == pytest.approx(0.75)  # type: ignore[union-attr]
    assert found.inter_token_latency.count == 2  # type: ignore[union-attr]
    assert found.request_latency.p99 == pytest.approx(2.99)  # type: ignore[union-attr]
    assert summarize([bad]).requests_per_second == 0


class Clockwork:
    """A target of known times, which counts who is under way."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def vocabulary(self) -> list[int]:
        return [1]

    async def call(self, call: Call, record: Record) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.05)
            if call.prompt == [13]:
                raise RuntimeError("bad\nluck")
            record.pieces.append(time.perf_counter())
            record.num_output_tokens = 1
        finally:
            self.now -= 1


def test_concurrency_is_kept() -> None:
    target, ended = Clockwork(), []
    calls = [Call([13 if i == 4 else 1], 1) for i in range(12)]
    records = asyncio.run(
        run_load(target, calls, [0.0] * 12, concurrency=3, on_end=ended.append)
    )  # fmt: skip
    assert target.most == 3
    assert len(ended) == 12
    assert [r.error for r in records] == [None] * 4 + ["bad luck"] + [None] * 7
    # Waiting for a free place is not the server's time.
    assert max(r.time_to_first_token for r in records if r.pieces) < 0.15


def test_rates_are_kept() -> None:
    target = Clockwork()
    start = time.perf_counter()
    times = [0.0, 0.1, 0.2, 0.3]
    records = asyncio.run(run_load(target, [Call([1], 1)] * 4, times))
    sent = [r.sent - records[0].sent for r in records]
    assert sent == pytest.approx(times)
    assert records[3].pieces[0] - start >= 0.34
    assert target.most <= 2


def test_over_http(server: Running) -> None:
    target = HTTPServer(server.url, 0.0, "key", None)

    async def run() -> list[Record]:
        token_ids = await target.vocabulary()
        text = server.engine.llm.tokenizer.decode(token_ids)
        assert text.startswith("the of and")
        calls = draw_calls(6, Length(5, 9), Length(10, 10), token_ids=token_ids)
        return await run_load(target, calls, [0.0] * 6, concurrency=3)

    for record in asyncio.run(run()):
        assert record.error is None
        assert record.num_output_tokens == len(record.pieces) == 10
        assert record.num_cached_tokens == record.num_prompt_tokens // 2
        assert record.pieces == sorted(record.pieces)
        assert record.time_per_output_token is not None
        assert record.time_per_output_token >= 0.009
        assert record.sent < record.pieces[0] < record.ended
    assert not server.engine.running


def one_error(url: str, prompt: list[int], key: str | None = "key") -> str:
    async def run() -> str | None:
        target = HTTPServer(url, 0.0, key, None)
        (record,) = await run_load(target, [Call(prompt, 4)], [0.0])
        return record.error

    error = asyncio.run(run())
    assert error
    return error


def test_errors_are_told(server: Running) -> None:
    tokenizer = server.engine.llm.tokenizer
    assert one_error(server.url, tokenizer.encode("FULL")) == "429: too many requests wait"
    assert one_error(server.url, tokenizer.encode("DIES")) == "the engine has stopped"
    assert one_error(server.url, [20], key="wrong") == "401: a valid API key is needed"
    assert one_error(f"{server.url}/nowhere", [20]) == "404: no such route"
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    assert str(port) in one_error(f"http://127.0.0.1:{port}", [20])
    for url in ("localhost:8000", "ftp://x", "http://", ""):
        with pytest.raises(ValueError, match=r"^url: "):
            HTTPServer(url, 0.0, None, None)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"hello\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndat",
    ],
)
def test_odd_servers(reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        assert one_error(f"http://127.0.0.1:{listener.getsockname()[1]}", [20])
        thread.join()


def test_in_process(tmp_path: Path) -> None:
    engine = FakeAsyncLLM(tmp_path, delay=0.005)

    async def run() -> list[Record]:
        target = InProcess(engine, 0.0)  # type: ignore[arg-type]
        token_ids = await target.vocabulary()
        calls = draw_calls(4, Length(5, 5), Length(7, 7), token_ids=token_ids)
        failing = Call(engine.llm.tokenizer.encode("FAILS"), 4)
        return await run_load(target, [*calls, failing], [0.0] * 5)

    *records, failed = asyncio.run(run())
    assert [len(r.pieces) for r in records] == [7] * 4
    assert [r.num_output_tokens for r in records] == [7] * 4
    assert failed.error
    assert not engine.running


def test_command_over_http(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMPO_API_KEY", "key")
    load = ["--url", server.url, "-n", "5", "--input-len", "4-8", "--output-len", "6"]
    assert main(["bench", "serve", *load, "--warmup", "2"]) == 0
    said = capsys.readouterr().out
    assert "time to first token" in said
    assert "5 requests (0 failed) in " in said
    assert main(["bench", "serve", *load, "--request-rate", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"]["num_output_tokens"] == 30
    assert found["results"]["time_to_first_token"]["count"] == 5
    assert found["load"]["input_len"] == "4-8"
    assert found["load"]["request_rate"] == 50
    assert {"command", "date", "commit", "platform", "versions", "isa", "threads"} <= set(found)
    monkeypatch.setenv("LAMPO_API_KEY", "wrong")
    assert main(["bench", "serve", *load]) == 1
    assert "401: a valid API key is needed" in capsys.readouterr().err


def test_command_in_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_checkpoint(tmp_path / "tiny")
    load = ["-m", str(tmp_path / "tiny"), "-n", "6", "-c", "3", "--input-len", "100"]
    load += ["--output-len", "10", "--shared-prefix", "80", "--json"]
    assert main(["bench", "serve", *load]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert results["num_requests"] == 6
    assert results["num_output_tokens"] == 60
    assert results["num_cached_tokens"] == 6 * 64  # a page of the common 80
    assert main(["bench", "serve", "-m", str(tmp_path / "tiny"), "--input-len", "300"]) == 1
    assert "failed: prompt: has 300 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input-len", "x"], "input_len: expected"),
        (["--output-len", "9-3"], "output_len: expected"),
        (["--request-rate", "nan"], "request_rate: expected"),
        (["--url", "nowhere"], "url: expected"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *arguments]) == 2
    assert message in capsys.readouterr().err
