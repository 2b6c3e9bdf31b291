# SPDX-License-Identifier: Apache-2.0
"""Routes that read JSON strictly, and the canonical form of a request's method and path."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from lampo.server.errors import APIError

_MAX_COST = 1 << 20
STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}


class Canonical:
    """Outermost middleware: HEAD is routed as GET, and trailing slashes are no part of a path.

    The HTTP server omits the body of the answer to HEAD.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            scope = {**scope, "method": method, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)


def json_response(text: str, headers: dict[str, str] | None = None) -> Response:
    """An answer that is JSON already."""
    return Response(text, headers=headers, media_type="application/json")


def new_router() -> APIRouter:
    return APIRouter(route_class=_StrictRoute)


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The body: UTF-8, no NaN or Infinity, no lone surrogates, of bounded depth.

        The last of duplicate keys counts, as in Python and JavaScript.
        """
        _check_cost(await self.body())
        try:
            return pydantic_core.from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise APIError(400, f"body: is not JSON: {error}", code="invalid_json") from None


def _check_cost(body: bytes) -> None:
    """Refuses JSON that takes the event loop longer than some 40 ms to read.

    The weights are measured times, in units of 20 to 40 ns. Characters in texts count too: several
    megabytes of them fit.
    """
    cost = body.count(b",") + 8 * (body.count(b"[") + body.count(b"{"))
    if cost + 16 * (body.count(b'":') - body.count(b'\\":')) > _MAX_COST:
        raise APIError(400, "body: has too many values", code="body_too_complex")


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict
