# SPDX-License-Identifier: Apache-2.0
"""The app: the gate, then limits, then endpoints."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI

from lampo import __version__
from lampo.async_llm import AsyncLLM
from lampo.server import chat, completions, errors, info
from lampo.server.auth import Gate, require_gate
from lampo.server.limits import Limits
from lampo.server.metrics import CountCalls
from lampo.server.routes import Canonical
from lampo.server.service import Service
from lampo.server.settings import Settings

_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": errors.ErrorResponse},
    "5XX": {"model": errors.ErrorResponse},
}


def create_app(engine: AsyncLLM, settings: Settings) -> FastAPI:
    """The server's ASGI app. It closes the engine at the end of its lifespan.

    There is no page of documentation: it would load scripts from other hosts. GET /openapi.json
    describes the endpoints.
    """
    service = Service(engine, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="lampo",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        responses=_RESPONSES,
        dependencies=[Depends(require_gate)],
    )
    errors.install(app)
    for module in (completions, chat, info):
        app.include_router(module.router(service))
    app.add_middleware(Limits, settings=settings)
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(CountCalls, metrics=service.metrics)
    app.add_middleware(Canonical)
    return app
