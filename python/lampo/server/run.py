# SPDX-License-Identifier: Apache-2.0
"""The app on a socket: uvicorn with time limits of its own, and a drain at SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lampo.async_llm import AsyncLLM
from lampo.server.app import create_app
from lampo.server.errors import error_body
from lampo.server.settings import Settings

_GRACE = 5.0  # seconds to send answers after the drain


class Server(uvicorn.Server):
    """A server that tells the engine to drain as soon as it is asked to stop.

    Args:
        engine: closed when the server ends.
        on_start: called once connections are accepted.
    """

    def __init__(
        self,
        engine: AsyncLLM,
        settings: Settings,
        *,
        access_log: bool = False,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._on_start = on_start
        super().__init__(
            uvicorn.Config(
                create_app(engine, settings),
                http=_protocol(settings),
                ws="none",
                lifespan="on",
                loop="asyncio",
                log_config=None,
                access_log=access_log,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(settings.drain_timeout + _GRACE),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # All objects so far stay. Otherwise the collector visits torch's objects repeatedly for
            # a body of 340,000 empty lists, which takes ten times as long as reading it.
            gc.collect()
            gc.freeze()
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = asyncio.ensure_future(self._engine.drain(self._settings.drain_timeout))
        try:
            await super().shutdown(sockets)
        finally:
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)

    def serve_forever(self, sock: socket.socket) -> None:
        """Returns after SIGTERM and a drain. Raises: KeyboardInterrupt after Ctrl-C."""
        # uvicorn raises the signal again once it has ended; a drained server exits with success.
        before = signal.signal(signal.SIGTERM, lambda number, frame: None)
        try:
            self.run([sock])
        finally:
            signal.signal(signal.SIGTERM, before)
            with contextlib.suppress(OSError):
                sock.close()


def _protocol(settings: Settings) -> type[H11Protocol]:
    class Protocol(_Protocol):
        header_timeout = settings.header_timeout
        max_connections = settings.max_connections

    return Protocol


class _Protocol(H11Protocol):
    """HTTP/1.1 with a limit on connections and on the time that a request's head may take."""

    header_timeout: float
    max_connections: int
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(error_body(400, "this is no HTTP request", code="bad_request")).encode()
        head: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        events: list[Any] = [
            h11.Response(status_code=400, headers=head, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun already
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
