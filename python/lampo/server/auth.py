# SPDX-License-Identifier: Apache-2.0
"""Authentication: a gate in front of the whole app, and a dependency that requires it.

The gate comes before routing and before the body is read, so that an unknown caller learns nothing
and costs nothing. It passes only valid keys; the one exception, GET /health, is compared with the
path that routing will use. Every route also depends on `require_gate`, which fails if the gate has
not run.
"""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from lampo.server.errors import APIError
from lampo.server.limits import CLIENT, refuse
from lampo.server.listen import is_loopback
from lampo.server.settings import Settings

OPEN_PATH = "/health"  # without details: probes have no keys
_PASSED = "lampo.gate"


class Gate:
    """Middleware that answers 401 without a valid key, and 403 under a host name not allowed."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._keys = [key.encode() for key in settings.api_keys]
        hosts = settings.allowed_hosts
        self._hosts = None if hosts is None else {host.lower().encode() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        error = self._refusal(scope)
        if error is None:
            scope[_PASSED] = True
            scope[CLIENT] = self._client(scope)
            await self._app(scope, receive, send)
        else:
            await refuse(error, scope, receive, send)

    def _refusal(self, scope: Scope) -> APIError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value for name, value in headers if name == b"host"]
        if self._hosts is not None and not (len(hosts) == 1 and _name(hosts[0]) in self._hosts):
            return APIError(403, "this host name is not served here", code="host_not_allowed")
        if scope["path"] == OPEN_PATH and scope["method"] == "GET":
            return None
        given = [value for name, value in headers if name == b"authorization"]
        if not self._keys or (len(given) == 1 and self._key_number(given[0]) is not None):
            return None
        return APIError(401, "a valid API key is needed", code="invalid_api_key")

    def _client(self, scope: Scope) -> str | None:
        """The number of the API key if there are several, else the address; None: this machine."""
        if len(self._keys) > 1:
            given = (value for name, value in scope["headers"] if name == b"authorization")
            return str(self._key_number(next(given, b"")))
        address = (scope.get("client") or ("127.0.0.1", 0))[0]
        return None if is_loopback(address) else str(address)

    def _key_number(self, header: bytes) -> int | None:
        scheme, _, key = header.partition(b" ")
        found = None
        for i, known in enumerate(self._keys):  # all of them, in constant time
            if hmac.compare_digest(known, key.strip()):
                found = i
        return found if scheme.lower() == b"bearer" else None


def _name(host: bytes) -> bytes:
    """A Host header without its port and the brackets of IPv6."""
    host = host.strip().lower()
    if host.startswith(b"["):
        return host[1:].partition(b"]")[0]
    return host.partition(b":")[0]


_Credentials = Annotated[
    HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))
]


async def require_gate(request: Request, credentials: _Credentials) -> None:
    """A dependency of every route; `credentials` is there for the OpenAPI document."""
    if not request.scope.get(_PASSED):
        raise APIError(401, "a valid API key is needed", code="invalid_api_key")
