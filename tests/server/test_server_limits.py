# SPDX-License-Identifier: Apache-2.0
"""The server with slow, huge, misbehaving and vanishing clients, and its shutdown."""

from __future__ import annotations

import asyncio
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

from lampo.server.shares import Shares

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
            connection.sendall(f"{HEAD}content-length: 50\r\n\r\nabc".encode())
            connection.sendall(b"x" * 47)
            assert status_of(connection.recv(4096)) == 400
        with server.raw() as connection:
            connection.sendall(f'{HEAD}content-length: 50\r\n\r\n{{"prompt": "a'.encode())
            connection.shutdown(socket.SHUT_WR)  # a body that ends early
            assert read_all(connection) == b""
        assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize("size", [15_000, 17_000, 100_000, 1_000_000])
@pytest.mark.parametrize("line", [b"x: %s\r\n" % (b"y" * 995), b"x:" + b"\r\n"])
def test_heads_have_a_size(engine: FakeAsyncLLM, size: int, line: bytes) -> None:
    """Also one that is complete when it arrives."""
    sent = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    sent += line * (size // len(line)) + b"\r\n"
    with running(engine) as server, server.raw() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(sent)
        reply = read_all(connection)
        if size < 16_000:
            assert status_of(reply) == 200
        else:
            assert (status_of(reply), error_code(reply)) == (431, "head_too_large")


def test_a_body_has_one_length(engine: FakeAsyncLLM) -> None:
    """Of two, a proxy might read the other, and take the rest for another request."""
    with running(engine) as server, server.raw() as connection:
        connection.sendall(
            f"{HEAD}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n".encode()
            + b"10\r\n" + b'{"prompt": "abc"}'[:16] + b"\r\n0\r\n\r\n"
        )  # fmt: skip
        reply = read_all(connection)  # and it is closed
        assert (status_of(reply), error_code(reply)) == (400, "bad_request")
        assert reply.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("authorized", [False, True])
def test_refused_calls_close_their_connection(engine: FakeAsyncLLM, authorized: bool) -> None:
    """The rest of the body is not parsed, but read for a moment, so that the answer arrives."""
    key = "authorization: Bearer k\r\n" if authorized else ""
    with running(engine, api_keys=("k",), max_body_bytes=1000) as server:
        with server.raw() as connection:
            connection.sendall(f"{HEAD}{key}content-length: 9000000\r\n\r\n".encode())
            connection.sendall(b"x" * 1_000_000)
            reply = read_all(connection)
            assert status_of(reply) == (413 if authorized else 401)
            assert b"connection: close" in reply
        with server.raw() as connection:
            connection.sendall(f"{HEAD}{key}transfer-encoding: chunked\r\n\r\n".encode())
            for _ in range(3):
                connection.sendall(b"200\r\n" + b"x" * 512 + b"\r\n")
            assert status_of(read_all(connection)) == (413 if authorized else 401)


def test_bodies_of_small_pieces(engine: FakeAsyncLLM) -> None:
    body = b'{"prompt": "%s"}' % (b"a" * 5000)
    head = f"{HEAD}connection: close\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    for size, status in ((3, 200), (2, 400)):
        pieces = [body[i : i + size] for i in range(0, len(body), size)]
        sent = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        with running(engine) as server, server.raw() as connection:
            with contextlib.suppress(OSError):
                connection.sendall(head + sent + b"0\r\n\r\n")
            reply = read_all(connection)
            assert status_of(reply) == status
            if status == 400:
                assert error_code(reply) == "body_in_small_pieces"
            assert server.client.get("/health").status_code == 200


def test_an_answer_that_is_not_read_is_left(tmp_path: Path) -> None:
    """A whole answer waits in the server for some time only."""
    engine = FakeAsyncLLM(tmp_path, max_model_len=100_000)
    body = {"prompt": "Hello", "max_tokens": 20_000, "logprobs": 20}
    with running(engine, send_timeout=0.3) as server, server.raw() as connection:
        data = json.dumps(body).encode()
        head = HEAD.replace("/tokenize", "/v1/completions")
        connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        wait_until(lambda: engine.finished["length"] == 1, 60)
        wait_until(lambda: not server.server.server_state.connections, 60)


def test_work_for_a_client_that_left_is_not_begun(engine: FakeAsyncLLM) -> None:
    """Two long texts take both threads; of the others, the client of one leaves."""
    encode, begun, go = engine.llm.tokenizer.encode, [], threading.Event()

    def slow(text: str, **options: Any) -> list[int]:
        begun.append(text[0])
        assert go.wait(60)
        return encode(text[:9], **options)

    engine.llm.tokenizer.encode = slow
    with running(engine) as server:
        held = []
        for name in "abcd":
            held.append(server.send_json("/tokenize", {"prompt": name * 5000}))
            wait_until(lambda: len(begun) == min(len(held), 2))
        wait_until(lambda: len(server.server.server_state.tasks) == 4)
        held.pop(2).close()
        wait_until(lambda: len(server.server.server_state.tasks) == 3)
        assert server.client.get("/health").status_code == 200
        go.set()
        for connection in held:
            assert status_of(connection.recv(4096)) == 200
            connection.close()
        assert sorted(begun) == ["a", "b", "d"]


def test_a_client_has_a_share_of_the_places(engine: FakeAsyncLLM) -> None:
    """The calls of one key wait for each other; those of another are answered."""
    engine.llm.max_num_seqs = 8
    first, second = ({"authorization": f"Bearer {key}"} for key in ("first", "second"))
    with running(engine, api_keys=("first", "second")) as server:
        data = json.dumps({**LONG, "stream": True}).encode()
        head = HEAD.replace("/tokenize", "/v1/completions") + "authorization: Bearer first\r\n"
        held = []
        for _ in range(12):
            connection = server.raw()
            connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            held.append(connection)
        wait_until(lambda: len(engine.running) == 6)  # three quarters
        body = {"prompt": "Hello", "max_tokens": 2}
        assert server.post("/v1/completions", body, headers=second).status_code == 200
        assert len(engine.added) == 7
        held.pop(0).close()
        wait_until(lambda: len(engine.added) == 8)
        for connection in held:
            connection.close()
        wait_until(lambda: not engine.running)
        assert server.post("/v1/completions", body, headers=first).status_code == 200


def test_a_client_has_a_share_of_the_calls(engine: FakeAsyncLLM) -> None:
    first, second = ({"authorization": f"Bearer {key}"} for key in ("first", "second"))
    with running(engine, api_keys=("first", "second"), max_requests=4) as server:
        head = HEAD + "authorization: bearer first\r\ncontent-length: 20\r\n\r\n"
        held = [server.raw() for _ in range(3)]
        for connection in held:
            connection.sendall(head.encode())
        time.sleep(0.3)
        body = {"prompt": "a"}
        reply = server.post("/tokenize", body, headers=first)
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "too_many_requests")
        assert server.post("/tokenize", body, headers=second).status_code == 200
        for connection in held:
            connection.close()


def test_shares() -> None:
    async def check() -> None:
        shares, order = Shares(3), []

        async def take(client: str | None, count: int, name: str) -> None:
            await shares.take(client, count)
            order.append(name)

        await take("a", 2, "two")
        waiting = [
            asyncio.ensure_future(take("a", count, name))
            for count, name in ((2, "later"), (9, "large"), (1, "last"))
        ]
        await take("b", 5, "other")
        await take(None, 99, "local")
        await asyncio.sleep(0)
        assert order == ["two", "other", "local"]
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        shares.give("a", 2)
        await waiting[1]
        assert order[-1] == "large"
        shares.give("a", 9)
        await waiting[2]
        shares.give("a", 1)
        shares.give("b", 5)
        assert not shares._held and not shares._waiting

    asyncio.run(check())


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
