# SPDX-License-Identifier: Apache-2.0
"""The small endpoints: models, tokens, health, metrics, and the description of them all."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from lampo.server.auth import OPEN_PATH
from lampo.server.errors import APIError
from lampo.server.generation import until_disconnected
from lampo.server.protocol import DetokenizeRequest, TokenizeRequest
from lampo.server.replies import HealthReport, Model, ModelList, Text, Tokens, encode_json
from lampo.server.routes import json_response, new_router
from lampo.server.service import Service


def router(service: Service) -> APIRouter:
    routes = new_router()
    llm = service.engine.llm
    name = service.settings.model_name
    model: Model = {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "lampo",
        "max_model_len": llm.max_model_len,
    }

    @routes.get("/v1/models", response_model=ModelList)
    async def models() -> ModelList:
        """The one model that is served."""
        return {"object": "list", "data": [model]}

    @routes.get("/v1/models/{model_id:path}", response_model=Model)
    async def one_model(model_id: str) -> Model:
        """That model, by its name."""
        if model_id != name:
            raise APIError(404, f"model: {model_id!r} is not served here", code="model_not_found")
        return model

    @routes.post("/tokenize", response_model=Tokens)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        """The token ids of a prompt, or of a chat as the model's template writes it."""
        service.check_model(body)
        if (body.prompt is None) == (body.messages is None):
            message = "prompt: give either a prompt or messages"
            raise APIError(400, message, param="prompt", code="invalid_value")
        return await until_disconnected(request, tokens_of(body))

    async def tokens_of(body: TokenizeRequest) -> Response:
        limit = service.max_listed_tokens
        if body.messages is not None:
            token_ids = await service.encode_chat(
                body, body.tools, body.chat_template_kwargs, max_tokens=limit
            )
        else:
            (token_ids,) = await service.encode(
                [body.prompt or ""],
                add_bos=body.add_special_tokens is not False,
                max_tokens=limit,
            )

        def reply() -> str:
            found: Tokens = {
                "count": len(token_ids),
                "max_model_len": llm.max_model_len,
                "tokens": token_ids,
            }
            if body.return_token_strs:
                found["token_strs"] = [service.tokenizer.id_to_token(t) for t in token_ids]
            return encode_json(found)

        return json_response(await service.run_in_thread(reply))

    @routes.post("/detokenize", response_model=Text)
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        """The text of token ids, special tokens included."""
        service.check_model(body)
        if len(body.tokens) > service.max_listed_tokens:
            message = f"tokens: expected at most {service.max_listed_tokens}"
            raise APIError(400, message, param="tokens", code="invalid_value")

        def reply() -> str:
            size = llm.config.vocab_size
            bad = next((t for t in body.tokens if not 0 <= t < size), None)
            if bad is not None:
                message = f"tokens: {bad} is not in the vocabulary of {size}"
                raise APIError(400, message, param="tokens", code="invalid_value")
            text = service.tokenizer.decode(body.tokens, skip_special_tokens=False)
            return encode_json({"prompt": text})

        work = service.run_in_thread(reply)
        return json_response(await until_disconnected(request, work))

    @routes.get(OPEN_PATH, response_model=HealthReport)
    async def health() -> JSONResponse:
        """200 while the step loop lives; 503 once it is dead, busy without a heartbeat, or fails
        step after step."""
        state = service.engine.health()
        status = "ok"
        if not state.alive:
            status = "dead"
        elif state.busy and state.heartbeat_age > service.settings.hung_after:
            status = "hung"
        elif state.failing:
            status = "failing"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counts and times in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @routes.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> JSONResponse:
        return JSONResponse(request.app.openapi())

    return routes
