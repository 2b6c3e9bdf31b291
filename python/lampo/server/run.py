# SPDX-License-Identifier: Apache-2.0
"""The app on a socket: uvicorn with time limits of its own, and a drain at SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http
import json
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lampo.async_llm import AsyncLLM
from lampo.server.app import create_app
from lampo.server.errors import APIError
from lampo.server.settings import Settings

_GRACE = 5.0  # seconds to send answers after the drain
_MAX_HEAD = 16 << 10  # bytes
# A body may have this many pieces (chunks, or reads of the socket) of fewer bytes than this.
_MAX_SMALL_PIECES, _SMALL_PIECE = 2048, 256
# The kernel keeps this much of an answer, so that a client that does not read is noticed early.
_SEND_BUFFER = 64 << 10
_NOT_HTTP = APIError(400, "this is no HTTP request", code="bad_request")
_LONG_HEAD = APIError(431, f"the head is larger than {_MAX_HEAD} bytes", code="head_too_large")
_SMALL_PIECES = APIError(
    400, f"the body has more than {_MAX_SMALL_PIECES} small pieces", code="body_in_small_pieces"
)


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
            # Threads that render, tokenize and encode give way to the event loop and to the steps
            # five times as often as by default.
            sys.setswitchinterval(0.001)
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
        send_timeout = settings.send_timeout
        max_connections = settings.max_connections

    return Protocol


class _Connection(h11.Connection):
    """Counts the small pieces of a body: parsing a chunk costs as much for one byte as for many.

    Attributes:
        refusal: the answer to a request that next_event() has refused.
    """

    refusal = _NOT_HTTP
    _num_small = 0

    def next_event(self) -> Any:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == _LONG_HEAD.status_code:
                self.refusal = _LONG_HEAD
            raise
        if isinstance(event, h11.Request):
            self._num_small = 0
        elif isinstance(event, h11.Data):
            self._num_small += len(event.data) < _SMALL_PIECE
            if self._num_small > _MAX_SMALL_PIECES:
                self.refusal = _SMALL_PIECES
                raise h11.RemoteProtocolError("too many small pieces")
        return event


class _Protocol(H11Protocol):
    """HTTP/1.1 with limits on connections, on the head's size and time, and on small pieces."""

    header_timeout: float
    send_timeout: float
    max_connections: int
    _header_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.conn: _Connection = _Connection(h11.SERVER, _MAX_HEAD)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Parses data in parts: h11 limits a head only while it is incomplete."""
        while data and not self.transport.is_closing():
            room = _MAX_HEAD + 1 - len(self.conn.trailing_data[0])
            if room <= 0:  # requests sent ahead, while an answer is made
                self.cycle.keep_alive = False
                break
            super().data_received(data[:room])
            data = data[room:]
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_sending(None)

    def _watch_sending(self, unsent_before: int | None) -> None:
        """Ends the connection if the client takes nothing of a whole answer for a time."""
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent == unsent_before:
            self.transport.abort()
        elif unsent:
            self.loop.call_later(self.send_timeout, self._watch_sending, unsent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        error = self.conn.refusal
        body = json.dumps(error.body).encode()
        head: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        events: list[Any] = [
            h11.Response(
                status_code=error.status_code,
                headers=head,
                reason=http.HTTPStatus(error.status_code).phrase.encode(),
            ),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun already
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        if self.cycle is not None:  # the app may still run: its answer is dropped
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _await_head(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_timeout, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
