# SPDX-License-Identifier: Apache-2.0
"""Mutated requests on raw connections: each gets a valid answer, or its connection is closed.

Good requests are mutated in their method, path, head, body, framing and timing.
Afterwards the server still serves, and no request, page or place is left taken.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h11
import pytest
from checkpoints import make_checkpoint
from fake_async_llm import FakeAsyncLLM
from http_server import Running, running, wait_until

from lampo.async_llm import AsyncLLM
from lampo.llm import LLM

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
GOOD: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/health", None),
    ("HEAD", "/health", None),
    ("GET", "/v1/models", None),
    ("GET", "/metrics", None),
    ("POST", "/tokenize", {"prompt": "Hello", "return_token_strs": True}),
    ("POST", "/tokenize", dict(CHAT, max_tokens=None)),
    ("POST", "/detokenize", {"tokens": [20, 21, 22]}),
    ("POST", "/v1/completions", {"prompt": "Hello", "max_tokens": 4, "n": 2, "logprobs": 2}),
    ("POST", "/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3, "stream": True}),
    ("POST", "/v1/completions", {"prompt": [20, 21], "max_tokens": 30, "stop": ["a", "b"]}),
    ("POST", "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    (
        "POST",
        "/v1/chat/completions",
        {**CHAT, "stream": True, "stream_options": {"include_usage": True}},
    ),
]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", "a", "\x00", "é" * 9,
    "x" * 70_000, "\U0010fffd", [], {}, [[]], [None], [1, "a"], {"": None}, {"type": "text"}, [{}],
    {"json": {}}, ["a"] * 300, list(range(300)), {"1": 1}, [[[[[[[[[[]]]]]]]]]],
]  # fmt: skip
NAMES = [
    "prompt", "messages", "model", "n", "max_tokens", "stop", "stream", "stream_options", "seed",
    "temperature", "top_p", "top_k", "logit_bias", "logprobs", "top_logprobs", "echo", "best_of",
    "suffix", "tools", "tool_choice", "response_format", "structured_outputs", "metadata",
    "priority", "cache_salt", "chat_template_kwargs", "tokens", "return_token_strs", "bad_words",
    "min_tokens", "role", "content", "include_usage", "type", "json_schema", "", "x" * 300, "é",
    "__class__",
]  # fmt: skip
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "A" * 99,
]
PATHS = [
    "/", "//", "/v1", "/v1/models/x", "/health/", "/health/../metrics", "/%00", "/%ff%fe",
    "/a?b=%zz", "*", "http://other/health", "/" + "a" * 9000, "/openapi.json", "/v1/completions//",
    "/\xff",
]  # fmt: skip
LINES = [
    b"content-length: 0", b"content-length: 5", b"content-length: -1", b"content-length: 1, 2",
    b"content-length: 99999999999999999999999", b"content-length: 9000000", b"content-length: 0x10",
    b"transfer-encoding: chunked", b"transfer-encoding: gzip",
    b"transfer-encoding: chunked, chunked",
    b"content-type: text/plain", b"content-type:", b"content-encoding: gzip", b"host: other",
    b"expect: 100-continue", b"connection: close", b"connection: upgrade\r\nupgrade: websocket",
    b"upgrade: h2c", b"authorization: Bearer x", b"x: " + b"y" * 9000, b"x: \xff\x00", b": empty",
    b"no colon", b" folded: a", b"a: b\rc: d", b"range: bytes=0-1", b"te: trailers", b"x:" * 2000,
]  # fmt: skip


def mutated_json(rng: random.Random, value: Any) -> Any:
    """The value with one part replaced, dropped, added or doubled."""
    choice = rng.random()
    if isinstance(value, dict) and value and choice < 0.8:
        value, name = dict(value), rng.choice(list(value))
        if choice < 0.5:
            value[name] = mutated_json(rng, value[name])
        elif choice < 0.6:
            del value[name]
        else:
            value[rng.choice(NAMES)] = rng.choice(VALUES)
        return value
    if isinstance(value, list) and value and choice < 0.7:
        i = rng.randrange(len(value))
        return [*value[:i], mutated_json(rng, value[i]), *value[i + (choice < 0.5) :]]
    return rng.choice(VALUES)


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.randrange(1, 20)
    insert = rng.choice([b"", rng.randbytes(size), b"\r\n", b"\x00", b"[" * 500, data[:at]])
    return data[:at] + insert + data[at + rng.choice([0, size, len(data)]) :]


def chunked(rng: random.Random, body: bytes) -> bytes:
    data, size = bytearray(), rng.choice([1, 3, 50, 5000])
    for i in range(0, len(body), size):
        piece = body[i : i + size]
        note = rng.choice([b"", b"", b"", b";a=b", b" ", b";" + b"x" * min(10 * size, 5000)])
        data += b"%x%s\r\n%s\r\n" % (len(piece) + rng.choice([0] * 40 + [1, 9]), note, piece)
    return bytes(data) + rng.choice(
        [b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\na: b\r\n\r\n", b"", b"-1\r\n"]
    )


def request_of(rng: random.Random) -> list[bytes]:
    """The parts of a request, which are sent with pauses in between."""
    method, path, good = rng.choice(GOOD)
    if rng.random() < 0.15:
        method = rng.choice(METHODS)
    if rng.random() < 0.15:
        path = rng.choice(PATHS)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        good = mutated_json(rng, good)
    body = b"" if good is None else json.dumps(good).encode()
    if rng.random() < 0.15:
        body = mutated_bytes(rng, body)
    lines = [b"host: localhost", b"content-type: application/json"]
    if rng.random() < 0.2:
        lines.append(b"transfer-encoding: chunked")
        body = chunked(rng, body)
    elif body or rng.random() < 0.5:
        lines.append(b"content-length: %d" % max(len(body) + rng.choice([0] * 20 + [-1, 1]), 0))
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES))
    version = rng.choice([b"1.1"] * 20 + [b"1.0", b"2.0", b"0.9", b"x"])
    start = method.encode() + b" " + path.encode("latin-1") + b" HTTP/" + version
    data = b"\r\n".join([start, *lines, b"", b""]) + body
    if rng.random() < 0.1:
        data = mutated_bytes(rng, data)
    if rng.random() < 0.05:
        data += data  # a second request at once
    if rng.random() < 0.2:
        cut = rng.randrange(len(data) + 1)
        return [data[:cut], data[cut:]]
    return [data]


def answer_of(connection: socket.socket, method: str) -> int:
    """The status of the first answer; 0 if the server closes without one.

    Raises: for an answer that is not HTTP, or an error without OpenAI's form.
    """
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    parser.send(h11.EndOfMessage())
    status, body = 0, b""
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            try:
                data = connection.recv(1 << 16)
            except ConnectionError:
                data = b""
            if not data and not status:
                return 0
            parser.receive_data(data)
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or event is h11.PAUSED:
            break
    if status >= 400 and method != "HEAD":
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert len(body) < 1000
    return status


def visit(server: Running, seed: int) -> int:
    """Sends one request; the status of its answer, 0 if there is none."""
    rng = random.Random(seed)
    parts = request_of(rng)
    is_head = b"".join(parts).startswith(b"HEAD ")
    with server.raw() as connection:
        connection.settimeout(60)
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(rng.choice([0, 0.01]) if len(parts) > 1 else 0)
        if rng.random() < 0.1:
            return 0  # the client leaves
        try:
            status = answer_of(connection, "HEAD" if is_head else "GET")
            assert status == 0 or 200 <= status < 500, status
        except Exception as error:
            raise AssertionError(f"seed {seed}: {parts!r}"[:2000]) from error
    return status


def fuzz(server: Running, count: int, first: int) -> Counter[int]:
    """Visits by 16 clients at a time; the statuses."""
    found: Counter[int] = Counter()
    with ThreadPoolExecutor(16) as threads:
        while found.total() < count:
            seeds = range(first + found.total(), first + found.total() + 80)
            found.update(threads.map(lambda seed: visit(server, seed), seeds))
            assert server.client.get("/health").json() == {"status": "ok"}
    assert {200, 400, 404, 405} <= set(found), found
    return found


def assert_idle(server: Running) -> None:
    """No call, connection, request, page or place is left."""
    wait_until(lambda: len(server.server.server_state.connections) <= 1, 60)
    wait_until(lambda: not server.server.server_state.tasks, 60)
    if isinstance(server.engine, AsyncLLM):
        engine = server.engine
        wait_until(lambda: engine.stats().num_running + engine.stats().num_waiting == 0, 60)
        stats = engine.stats()
        assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages
        assert engine.health().alive
        assert not engine._streams
    else:
        wait_until(lambda: not server.engine.running, 60)


@pytest.fixture
def fake_server(tmp_path: Path) -> Iterator[Running]:
    with running(FakeAsyncLLM(tmp_path), header_timeout=2.0, body_timeout=2.0) as found:
        yield found


@pytest.fixture
def real_server(tmp_path: Path) -> Iterator[Running]:
    make_checkpoint(tmp_path / "model")
    engine = AsyncLLM(LLM(tmp_path / "model", max_num_seqs=4), max_waiting=100)
    with running(engine, header_timeout=2.0, body_timeout=2.0) as found:
        yield found


def test_mutated_requests(fake_server: Running, caplog: pytest.LogCaptureFixture) -> None:
    fuzz(fake_server, 240, 0)
    assert_idle(fake_server)
    assert [r for r in caplog.records if r.exc_info] == []
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)


def test_mutated_requests_to_a_model(
    real_server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    fuzz(real_server, 240, 1_000_000)
    assert_idle(real_server)
    assert [r for r in caplog.records if r.exc_info] == []


@pytest.mark.slow
def test_mutated_requests_at_length(real_server: Running, caplog: pytest.LogCaptureFixture) -> None:
    fuzz(real_server, 20_000, 2_000_000)
    assert_idle(real_server)
    assert [r for r in caplog.records if r.exc_info] == []
