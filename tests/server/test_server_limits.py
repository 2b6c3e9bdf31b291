# SPDX-License-Identifier: Apache-2.0
"""The server with slow, huge, misbehaving and vanishing clients, and its shutdown."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fake_async_llm import FakeAsyncLLM
from http_server import Running, read_all, running, wait_until

LONG = {"prompt": "Hello", "max_tokens": 200}
HEAD = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture
def engine(tmp_path: Path) -> FakeAsyncLLM:
    return FakeAsyncLLM(tmp_path, delay=0.01)


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


def error_code(reply: bytes) -> str:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"application/json" in head
    return json.loads(body)["error"]["code"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_requests(
    engine: FakeAsyncLLM, path: str, stream: bool
) -> None:
    prompt: Any = {"prompt": ["Hello", "Hi"]}
    if "chat" in path:
        prompt = {"messages": [{"role": "user", "content": "Hello"}]}
    count = 1 if "chat" in path else 2
    with running(engine) as server:
        connection = server.send_json(path, {"max_tokens": 200, "stream": stream, **prompt})
        wait_until(lambda: len(engine.running) == count)
        if stream:
            assert connection.recv(4096)
        connection.close()
        wait_until(lambda: not engine.running)
        assert len(engine.aborted) == count
        assert not engine.finished


def test_a_client_that_does_not_read_is_left(tmp_path: Path) -> None:
    engine = FakeAsyncLLM(tmp_path, max_model_len=100_000)
    body = {"prompt": "Hello", "max_tokens": 90_000, "stream": True, "logprobs": 20}
    with running(engine, send_timeout=0.4) as server:
        connection = server.send_json("/v1/completions", body)
        wait_until(lambda: bool(engine.running))
        wait_until(lambda: bool(engine.aborted), 20)
        connection.close()


def test_bodies_have_a_size(engine: FakeAsyncLLM) -> None:
    big = json.dumps({"prompt": "x" * 2000}).encode()
    with running(engine, max_body_bytes=1000, header_timeout=1.0) as server:
        reply = server.post("/tokenize", big)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
        # Announced: refused before a byte of it has been sent.
        with server.raw() as connection:
            connection.sendall(f"{HEAD}content-length: 9999999999999999999\r\n\r\n".encode())
            assert status_of(connection.recv(4096)) == 413
        # In chunks: refused as soon as there are too many, though more could follow for ever.
        with server.raw() as connection:
            connection.sendall(f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode())
            for _ in range(3):
                connection.sendall(b"200\r\n" + b"x" * 512 + b"\r\n")
            assert status_of(connection.recv(4096)) == 413
        assert server.post("/tokenize", {"prompt": "x" * 900}).status_code == 200


def test_bodies_have_a_time(engine: FakeAsyncLLM) -> None:
    with running(engine, body_timeout=0.3) as server, server.raw() as connection:
        connection.sendall(f'{HEAD}content-length: 20\r\n\r\n{{"pro'.encode())
        reply = b""
        while b"}}" not in reply:
            reply += connection.recv(4096)
        assert (status_of(reply), error_code(reply)) == (408, "body_timeout")


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nx-a: b\r\n"])
def test_heads_have_a_time(engine: FakeAsyncLLM, sent: bytes) -> None:
    with running(engine, header_timeout=0.3) as server, server.raw() as connection:
        connection.sendall(sent)
        start = time.monotonic()
        assert read_all(connection) == b""
        assert 0.1 < time.monotonic() - start < 5


def test_a_second_head_has_a_time(engine: FakeAsyncLLM) -> None:
    """A byte now and then does not keep a connection open."""
    with running(engine, header_timeout=0.4) as server, server.raw() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert status_of(connection.recv(4096)) == 200
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"G")
                time.sleep(0.05)
        assert time.monotonic() - start < 4


def test_an_answer_may_take_longer_than_a_head(engine: FakeAsyncLLM) -> None:
    engine.delay = 0.05
    with running(engine, header_timeout=0.2, body_timeout=0.2) as server:
        reply = server.post("/v1/completions", {"prompt": "Hello", "max_tokens": 12})
        assert reply.json()["usage"]["completion_tokens"] == 12


def test_what_is_no_http(engine: FakeAsyncLLM) -> None:
    with running(engine) as server:
        for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1", b"\r\r\r\n\n\n"):
            with server.raw() as connection:
                connection.sendall(sent + b"\r\n\r\n")
                reply = read_all(connection)
                assert (status_of(reply), error_code(reply)) == (400, "bad_request")
        with server.raw() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 100_000)
            assert status_of(read_all(connection)) == 400
        with server.raw() as connection:
            connection.sendall(f'{HEAD}content-length: 50\r\n\r\n{{"prompt": "a'.encode())
            connection.shutdown(socket.SHUT_WR)  # a body that ends early
            assert read_all(connection) == b""
        assert server.client.get("/health").status_code == 200


def test_connections_have_a_number(engine: FakeAsyncLLM) -> None:
    with running(engine, max_connections=3) as server:
        held = [server.raw() for _ in range(3)]
        time.sleep(0.2)
        start = time.monotonic()
        with server.raw() as connection:
            assert read_all(connection) == b""
        assert time.monotonic() - start < 5  # sooner than for want of a head
        for connection in held:
            connection.close()
        wait_until(lambda: not server.server.server_state.connections)
        assert server.client.get("/health").status_code == 200


def test_calls_in_progress_have_a_number(engine: FakeAsyncLLM) -> None:
    with running(engine, max_requests=2) as server:
        held = [server.send_json("/v1/completions", LONG) for _ in range(2)]
        wait_until(lambda: len(engine.running) == 2)
        reply = server.post("/v1/completions", LONG)
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "too_many_requests")
        assert reply.headers["retry-after"] == "1"
        assert server.client.get("/health").status_code == 200
        for connection in held:
            connection.close()
        wait_until(lambda: not engine.running)
        assert server.post("/tokenize", {"prompt": "a"}).status_code == 200


def test_media_types(engine: FakeAsyncLLM) -> None:
    """A web page may send text/plain to another origin without asking, but not JSON."""
    with running(engine) as server:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"):
            headers = {"content-type": kind} if kind else {}
            reply = server.client.post("/tokenize", content=b'{"prompt": "a"}', headers=headers)
            assert reply.status_code == 415
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        reply = server.client.post("/tokenize", content=b'{"prompt": "a"}', headers=headers)
        assert reply.status_code == 200
        assert "access-control-allow-origin" not in reply.headers


def test_timeouts_reach_the_engine(engine: FakeAsyncLLM) -> None:
    with running(engine, request_timeout=7.5) as server:
        server.post("/v1/completions", {"prompt": "Hello", "max_tokens": 1})
        assert engine.added[-1]["timeout"] == 7.5


def ended(server: Running, seconds: float) -> bool:
    server.server.should_exit = True
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if getattr(server.engine, "closed", False):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("stream", [False, True])
def test_stopping_lets_requests_end(engine: FakeAsyncLLM, stream: bool) -> None:
    replies: list[Any] = []
    body = {"prompt": "Hello", "max_tokens": 60, "stream": stream}
    with running(engine, drain_timeout=10) as server:
        caller = threading.Thread(
            target=lambda: replies.append(server.post("/v1/completions", body))
        )
        caller.start()
        wait_until(lambda: bool(engine.running))
        assert ended(server, 10)
        caller.join(10)
    assert replies[0].status_code == 200
    assert replies[0].text.count("length") == 1
    assert engine.finished == {"length": 1}
    with pytest.raises(OSError, match=r"."):
        server.raw()


@pytest.mark.parametrize("stream", [False, True])
def test_stopping_has_a_time(engine: FakeAsyncLLM, stream: bool) -> None:
    """Requests past the drain timeout are ended with a message, and the server ends."""
    engine.delay = 0.05
    replies: list[Any] = []
    with running(engine, drain_timeout=0.5) as server:
        caller = threading.Thread(
            target=lambda: replies.append(
                server.post("/v1/completions", {**LONG, "stream": stream})
            )
        )
        caller.start()
        wait_until(lambda: bool(engine.running))
        assert ended(server, 5)
        caller.join(10)
    assert replies[0].status_code == (200 if stream else 503)
    assert '"code":"aborted"' in replies[0].text
