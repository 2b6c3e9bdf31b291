# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: an answer in pieces, aborted when it is not read."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lampo.server.errors import APIError, error_body
from lampo.server.generation import Generation, client_left
from lampo.server.replies import encode_json
from lampo.server.settings import Settings

logger = logging.getLogger("lampo.server")
DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + encode_json(data).encode() + b"\n\n"


async def events(chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncGenerator[bytes, None]:
    """Chunks as events, and [DONE]; a failure is a separate event."""
    try:
        async for chunk in chunks:
            yield event(chunk)
    except APIError as error:
        yield event(error.body)
    except Exception:
        logger.exception("a stream failed")
        yield event(error_body(500, "internal error", code="internal_error"))
    yield DONE


class EventStream(Response):
    """Sends chunks until they end, the client disconnects, or reads too slowly: a piece takes
    longer than `send_timeout`, or the whole takes that much longer than a request may."""

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        chunks: AsyncIterator[Mapping[str, Any]],
        settings: Settings,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(
            {
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # no buffering in proxies
                "x-request-id": generation.id,
            }
        )
        self._generation = generation
        self._events = events(chunks)
        self._send_timeout = settings.send_timeout
        self._sending_since: float | None = None
        self._deadline = math.inf
        if settings.request_timeout is not None:
            longest = settings.request_timeout + settings.send_timeout
            self._deadline = time.monotonic() + longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [
            asyncio.ensure_future(self._write(send)),
            asyncio.ensure_future(client_left(receive)),
        ]
        try:
            while not self._is_stuck():
                done, _ = await asyncio.wait(
                    tasks, timeout=self._send_timeout / 4, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    break
        finally:
            for task in tasks:
                task.cancel()
            written, _ = await asyncio.gather(*tasks, return_exceptions=True)
            await self._events.aclose()
            await self._generation.aclose()
        if isinstance(written, Exception):
            raise written

    def _is_stuck(self) -> bool:
        now, since = time.monotonic(), self._sending_since
        return since is not None and (now - since > self._send_timeout or now > self._deadline)

    async def _write(self, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        async for data in self._events:
            self._sending_since = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})
            self._sending_since = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})
