# SPDX-License-Identifier: Apache-2.0
"""Limits on calls, checked before anything is parsed."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lampo.server.errors import APIError, error_response
from lampo.server.settings import Settings

CLIENT = "lampo.client"  # in the scope: the client, as shares are counted
_DISCARD_TIMEOUT = 2.0  # seconds
_MAX_DISCARDED = 4 << 20  # bytes


class Limits:
    """Middleware: reads a body within its limits of size and time, and counts calls in progress.

    The body is complete when a route sees it. A body that is too large is refused once its length
    is announced, or, if chunked, has arrived.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._num_requests: Counter[str | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "GET":  # answered at once, also while the places are taken
            await self._serve(scope, receive, send)
            return
        client = scope.get(CLIENT)
        if error := self._refusal(client):
            await refuse(error, scope, receive, send)
            return
        self._num_requests[client] += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self._num_requests[client] -= 1
            if not self._num_requests[client]:
                del self._num_requests[client]

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            _check_head(scope)
            body = await asyncio.wait_for(
                self._read_body(scope, receive), self._settings.body_timeout
            )
        except APIError as error:
            await refuse(error, scope, receive, send)
            return
        except asyncio.TimeoutError:
            late = APIError(408, "the body took too long to arrive", code="body_timeout")
            await refuse(late, scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _refusal(self, client: str | None) -> APIError | None:
        limit = self._settings.max_requests
        share = math.ceil(limit * self._settings.client_share)
        is_over = client is not None and self._num_requests[client] >= share
        if is_over or self._num_requests.total() >= limit:
            message = f"{share if is_over else limit} calls are in progress already"
            return APIError(429, message, code="too_many_requests", retry_after=1)
        return None

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None after a disconnect. Raises: APIError if it is too large."""
        limit = self._settings.max_body_bytes
        too_large = APIError(413, f"the body is larger than {limit} bytes", code="body_too_large")
        announced = _header(scope, b"content-length")
        if announced.isdigit() and int(announced[:20]) > limit:
            raise too_large
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > limit:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)


def _header(scope: Scope, name: bytes) -> bytes:
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return next((value for key, value in headers if key == name), b"")


async def refuse(error: APIError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request whose body may not have been read, and closes its connection.

    The rest of the body is discarded for a moment: closing a socket with unread data resets the
    connection, and the client may lose the answer.
    """

    async def send_but_for_the_end(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "more_body": True}
        await send(message)

    async def discard() -> None:
        size = 0
        while size < _MAX_DISCARDED:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return

    response = error_response(error)
    response.headers["connection"] = "close"
    await response(scope, receive, send_but_for_the_end)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(discard(), _DISCARD_TIMEOUT)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _check_head(scope: Scope) -> None:
    """Only JSON is accepted: a web page cannot send it cross-origin without a preflight.

    Two lengths of a body are refused: a proxy in front may read the other one.
    """
    is_chunked = _header(scope, b"transfer-encoding") != b""
    if is_chunked and _header(scope, b"content-length") != b"":
        message = "content-length and transfer-encoding exclude each other"
        raise APIError(400, message, code="bad_request")
    if not is_chunked and _header(scope, b"content-length") in (b"", b"0"):
        return
    kind = _header(scope, b"content-type").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        message = "expected content-type: application/json"
        raise APIError(415, message, code="unsupported_media_type")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body once and then waits for the disconnect."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message
