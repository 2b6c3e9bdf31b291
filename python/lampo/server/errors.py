# SPDX-License-Identifier: Apache-2.0
"""Errors in OpenAI's format, without details of internal errors."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lampo.server.protocol import NESTED_FIELDS
from lampo.text.tokenizer import TooManyTokensError

logger = logging.getLogger("lampo.server")
MAX_MESSAGE_CHARS = 300
MAX_NAME_CHARS = 64

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ROUTING = {
    404: ("no such route", "route_not_found"),
    405: ("this route has other methods", "method_not_allowed"),
}
_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,63})[^:\s]{0,64}: ")


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class APIError(HTTPException):
    """An error response.

    Args:
        status: the HTTP status.
        message: one line for the caller.
        param: the field at fault.
        code: a machine-readable identifier.
        retry_after: seconds until a retry may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        headers = {}
        if retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(retry_after)))
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status_code, str(self.detail), self.param, self.code)


def bad_value(error: ValueError | TypeError) -> APIError:
    """The library's error about an argument: "name: expected ..., got ..."."""
    message = str(error)
    named = _NAMED.match(message)
    too_long = isinstance(error, TooManyTokensError)
    code = "context_length_exceeded" if too_long else "invalid_value"
    return APIError(400, message, param=named[1] if named else None, code=code)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    message = " ".join(message.split())
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[: MAX_MESSAGE_CHARS - 3] + "..."
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: APIError) -> JSONResponse:
    return JSONResponse(error.body, error.status_code, error.headers)


def validation_error(errors: Sequence[Mapping[str, Any]]) -> APIError:
    """The first error of pydantic, and the alternatives for the same field."""
    where, first = _field(errors[0]), errors[0]
    if first["type"] == "extra_forbidden":
        return APIError(400, f"unknown field {where!r}", param=where, code="unknown_field")
    if first["type"] == "none_required":
        return APIError(400, f"{where}: is not supported", param=where, code="unsupported_value")
    if first["type"] == "missing":
        name = where or "body"
        return APIError(400, f"{name}: is missing", param=where or None, code="missing_field")
    reasons = dict.fromkeys(str(e["msg"]).lower() for e in errors if _field(e) == where)
    message = f"{where or 'body'}: {'; or '.join(reasons)}"
    return APIError(400, message, param=where or None, code="invalid_value")


def _field(error: Mapping[str, Any]) -> str:
    """The field's name, with those of the objects that hold it; the rest of the path is indices and
    branches of unions."""
    path = [part for part in error["loc"] if part != "body"]
    if not path or not isinstance(path[0], str):
        return ""
    inner = itertools.takewhile(lambda part: part in NESTED_FIELDS, path[1:])
    names = [path[0], *inner]
    if error["type"] == "extra_forbidden" and len(names) < len(path):
        names.append(str(path[len(names)]))
    return ".".join(name[:MAX_NAME_CHARS] for name in names)


def install(app: FastAPI) -> None:
    """Installs handlers that give all errors this format."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, APIError)
        return error_response(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(validation_error(error.errors()))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteHTTPException)
        status = error.status_code
        message, code = _ROUTING.get(status, ("the request could not be read", "bad_request"))
        body = error_body(status, message, code=code)
        return JSONResponse(body, error.status_code, error.headers)

    app.add_exception_handler(APIError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(StarletteHTTPException, http_error)
    app.add_middleware(_Internal)


class _Internal:
    """Middleware: logs unexpected exceptions, and hides them from the caller."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            logger.exception("internal error")
            body = error_body(500, "internal error", code="internal_error")
            await JSONResponse(body, 500)(scope, receive, send)
