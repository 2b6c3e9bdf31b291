# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions: answers to conversations, by the model's chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lampo.outputs import Logprob, LogprobTable, RequestOutput
from lampo.server.errors import APIError
from lampo.server.generation import (
    Generation,
    json_logprob,
    until_disconnected,
    whole_reply,
)
from lampo.server.limits import CLIENT
from lampo.server.protocol import ChatRequest
from lampo.server.replies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    TokenLogprob,
    TopLogprob,
)
from lampo.server.routes import STREAM, new_router
from lampo.server.service import Service
from lampo.server.sse import EventStream
from lampo.text.structured_outputs import StructuredOutputs
from lampo.text.tokenizer import Tokenizer


def router(service: Service) -> APIRouter:
    routes = new_router()

    @routes.post(
        "/v1/chat/completions", responses={200: {"model": ChatCompletion, "content": STREAM}}
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation; with stream, as server-sent events."""
        call = await until_disconnected(request, _Call.begin(service, body, request.scope[CLIENT]))
        if body.stream:
            return EventStream(call.generation, call.chunks(), service.settings)
        return await whole_reply(call.generation, call.reply, request)

    return routes


class _Call:
    """One call: its engine request, and the conversion of pieces to choices."""

    def __init__(
        self, service: Service, body: ChatRequest, client: str | None, token_ids: list[int]
    ) -> None:
        self._service = service
        self._body = body
        self._params = service.sampling_params(
            body,
            max_tokens=_max_tokens(service, body, len(token_ids)),
            logprobs=_num_logprobs(service, body),
            **_structured_outputs(body),
        )
        field = "structured_outputs" if body.response_format is None else "response_format"
        self.generation = Generation(service, "chatcmpl", self._params, client, field)

    @classmethod
    async def begin(cls, service: Service, body: ChatRequest, client: str | None) -> _Call:
        """Checks the body and submits the conversation to the engine. Raises: APIError."""
        service.check_model(body)
        arguments = dict(body.chat_template_kwargs or {})
        if body.reasoning_effort is not None:
            arguments.setdefault("reasoning_effort", body.reasoning_effort)
        tools = None if body.tool_choice == "none" else body.tools
        token_ids = await service.encode_chat(
            body, tools, arguments, max_tokens=service.engine.llm.max_model_len
        )
        call = cls(service, body, client, token_ids)
        try:
            await call.generation.start([token_ids], body)
        except APIError as error:
            if error.param == "prompt":
                error.param = "messages"  # the field's name in the body
            raise
        return call

    def reply(self, results: list[RequestOutput]) -> ChatCompletion:
        (result,) = results
        choices: list[ChatChoice] = [
            {
                "index": output.index,
                "message": {"role": "assistant", "content": output.text, "refusal": None},
                "logprobs": self._logprobs(output.token_ids, output.logprobs),
                "finish_reason": output.finish_reason or "stop",
                "stop_reason": output.stop_reason,
            }
            for output in result.outputs
        ]
        return {
            "id": self.generation.id,
            "object": "chat.completion",
            "created": self.generation.created,
            "model": self._service.settings.model_name,
            "choices": choices,
            "usage": self.generation.usage(),
        }

    async def chunks(self) -> AsyncIterator[ChatChunk]:
        options = self._body.stream_options
        with_usage = options is not None and options.include_usage
        always = with_usage and options is not None and options.continuous_usage_stats
        head: ChatChunk = {
            "id": self.generation.id,
            "object": "chat.completion.chunk",
            "created": self.generation.created,
            "model": self._service.settings.model_name,
            "choices": [],
        }
        if with_usage:
            head["usage"] = None
        begun: set[int] = set()

        def chunk(
            index: int, delta: ChatDelta, logprobs: ChatLogprobs | None, reason: str | None
        ) -> ChatChunk:
            choice: ChatChunkChoice = {
                "index": index,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": reason,
            }
            return {**head, "choices": [choice]}

        async for _, piece in self.generation:
            if always:
                head["usage"] = self.generation.usage()
            if piece.index not in begun:
                begun.add(piece.index)
                yield chunk(piece.index, {"role": "assistant", "content": ""}, None, None)
            logprobs = self._logprobs(piece.token_ids, piece.logprobs)
            if piece.text or logprobs or piece.finish_reason:
                delta: ChatDelta = {"content": piece.text} if piece.text else {}
                yield chunk(piece.index, delta, logprobs, piece.finish_reason)
        if with_usage:
            yield {**head, "usage": self.generation.usage()}

    def _logprobs(
        self, token_ids: Sequence[int], tables: Sequence[LogprobTable] | None
    ) -> ChatLogprobs | None:
        if not tables or self._params.logprobs is None:
            return None
        tokenizer, count = self._service.tokenizer, self._params.logprobs
        pairs = zip(token_ids, tables, strict=True)
        return {"content": [_token_logprob(tokenizer, t, table, count) for t, table in pairs]}


def _token_logprob(
    tokenizer: Tokenizer, token_id: int, table: LogprobTable, count: int
) -> TokenLogprob:
    ranked = sorted(table.items(), key=lambda item: item[1].rank)[:count]
    top = [_one(tokenizer, i, entry) for i, entry in ranked]
    return {**_one(tokenizer, token_id, table[token_id]), "top_logprobs": top}


def _one(tokenizer: Tokenizer, token_id: int, entry: Logprob) -> TopLogprob:
    return {
        "token": entry.decoded_token,
        "logprob": json_logprob(entry.logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _max_tokens(service: Service, body: ChatRequest, num_prompt_tokens: int) -> int | None:
    """The requested limit; else None (the model's), or the rest of the context."""
    given = {v for v in (body.max_completion_tokens, body.max_tokens) if v is not None}
    if len(given) > 1:
        message = "max_completion_tokens: is an alias of max_tokens, and they differ"
        raise APIError(400, message, param="max_completion_tokens", code="invalid_value")
    if given:
        return given.pop()
    llm = service.engine.llm
    if "max_new_tokens" in llm.generation_config:
        return None
    return max(llm.max_model_len - num_prompt_tokens, 1)


def _num_logprobs(service: Service, body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        message = "top_logprobs: needs logprobs: true"
        raise APIError(400, message, param="top_logprobs", code="invalid_value")
    if not body.logprobs:
        return None
    return service.check_logprobs("top_logprobs", body.top_logprobs or 0)


def _structured_outputs(body: ChatRequest) -> dict[str, Any]:
    """The structure of response_format: a schema with closed objects, unless strict is false."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return {}
    if body.structured_outputs is not None:
        raise _bad_format("does not go with structured_outputs")
    if wanted.type == "json_object":
        return {"structured_outputs": StructuredOutputs(json_object=True)}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise _bad_format("type json_schema needs json_schema.schema")
    schema, closed = wanted.json_schema.schema_, wanted.json_schema.strict is not False
    try:
        found = StructuredOutputs(json=schema, disable_additional_properties=closed)
        return {"structured_outputs": found}
    except (ValueError, TypeError) as error:
        raise _bad_format(str(error)) from None


def _bad_format(why: str) -> APIError:
    message = f"response_format: {why}"
    return APIError(400, message, param="response_format", code="invalid_value")
