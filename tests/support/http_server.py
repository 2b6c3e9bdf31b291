# SPDX-License-Identifier: Apache-2.0
"""A server on a real socket in a thread, and a client that can misbehave."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from lampo.server.listen import bind, url_of
from lampo.server.run import Server
from lampo.server.settings import Settings


class Running:
    """Attributes: url; engine, the fake; client, httpx's, with the key; server."""

    def __init__(self, engine: Any, server: Server, url: str, key: str | None) -> None:
        self.engine = engine
        self.server = server
        self.url = url
        self.address = ("127.0.0.1", int(url.rpartition(":")[2]))
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=20)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        if isinstance(body, bytes):
            more.setdefault("headers", {"content-type": "application/json"})
            return self.client.post(path, content=body, **more)
        return self.client.post(path, json=body, **more)

    def raw(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def send_json(self, path: str, body: Any) -> socket.socket:
        """A connection on which a request has been sent and nothing read yet."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection = self.raw()
        connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        return connection


@contextlib.contextmanager
def running(engine: Any, **settings: Any) -> Iterator[Running]:
    """Serves `engine` until the block ends, then drains it."""
    chosen = Settings(**{"model_name": "tiny", "drain_timeout": 2.0, **settings})
    sock = bind("127.0.0.1", 0)
    url, started = url_of(sock), threading.Event()
    server = Server(engine, chosen, on_start=started.set)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        assert started.wait(20)
        found = Running(engine, server, url, chosen.api_keys[0] if chosen.api_keys else None)
        with found.client:
            yield found
    finally:
        server.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def read_all(connection: socket.socket) -> bytes:
    """All bytes that arrive until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def sse(text: str) -> list[Any]:
    """The events of a stream, which must end with [DONE]."""
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all(block.startswith("data: ") for block in blocks[:-1])
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def error_of(response: Any, status: int, code: str | None = None) -> dict[str, Any]:
    """The error of an answer, after a check of its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) <= 300
    assert "secret" not in response.text and "Traceback" not in response.text
    if code is not None:
        assert error["code"] == code
    return error
