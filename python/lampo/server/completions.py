# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions: continuations of prompts, as text or tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from lampo.outputs import LogprobTable, RequestOutput
from lampo.server.errors import APIError
from lampo.server.generation import (
    Generation,
    json_logprob,
    until_disconnected,
    whole_reply,
)
from lampo.server.limits import CLIENT
from lampo.server.protocol import CompletionRequest
from lampo.server.replies import Completion, CompletionChoice, LegacyLogprobs
from lampo.server.routes import STREAM, new_router
from lampo.server.service import Service
from lampo.server.sse import EventStream
from lampo.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16  # OpenAI's


def router(service: Service) -> APIRouter:
    routes = new_router()

    @routes.post("/v1/completions", responses={200: {"model": Completion, "content": STREAM}})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continues prompts; with stream, as server-sent events."""
        call = await until_disconnected(request, _Call.begin(service, body, request.scope[CLIENT]))
        if body.stream:
            return EventStream(call.generation, call.chunks(), service.settings)
        return await whole_reply(call.generation, call.reply, request)

    return routes


class _Call:
    """One call: its engine requests, and the conversion of pieces to choices."""

    def __init__(self, service: Service, body: CompletionRequest, client: str | None) -> None:
        service.check_model(body)
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise APIError(400, "best_of: only the value of n is supported", param="best_of")
        if body.stream and body.echo and body.logprobs is not None:
            raise APIError(400, "echo: with logprobs it cannot be streamed", param="echo")
        logprobs = service.check_logprobs("logprobs", body.logprobs)
        self._params = service.sampling_params(
            body,
            max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
            logprobs=logprobs,
            prompt_logprobs=logprobs if body.echo else None,
        )
        self._service = service
        self._body = body
        self._echoes: list[str] = []
        self.generation = Generation(service, "cmpl", self._params, client)

    @classmethod
    async def begin(cls, service: Service, body: CompletionRequest, client: str | None) -> _Call:
        """Checks the body and submits its prompts to the engine. Raises: APIError."""
        call = cls(service, body, client)
        prompts = _prompts(body)
        if len(prompts) > service.settings.max_prompts:
            message = f"prompt: expected at most {service.settings.max_prompts} prompts"
            raise APIError(400, message, param="prompt", code="invalid_value")
        encoded = await service.encode(prompts, max_tokens=service.engine.llm.max_model_len)
        await call.generation.start(encoded, body)
        if body.echo:
            decode = service.tokenizer.decode
            call._echoes = await service.run_in_thread(
                lambda: [p if isinstance(p, str) else decode(p) for p in prompts]
            )
        return call

    def reply(self, results: list[RequestOutput]) -> Completion:
        choices: list[CompletionChoice] = []
        tokenizer = self._service.tokenizer
        for prompt, result in enumerate(results):
            for output in result.outputs:
                text, logprobs = output.text, None
                token_ids = output.token_ids
                tables: list[LogprobTable | None] = [*(output.logprobs or [])]
                if self._body.echo:
                    text = self._echoes[prompt] + text
                    token_ids = result.prompt_token_ids + token_ids
                    tables = (result.prompt_logprobs or []) + tables
                if self._params.logprobs is not None:
                    logprobs, _ = legacy_logprobs(tokenizer, token_ids, tables)
                choices.append(
                    {
                        "index": prompt * self._params.n + output.index,
                        "text": text,
                        "logprobs": logprobs,
                        "finish_reason": output.finish_reason,
                        "stop_reason": output.stop_reason,
                    }
                )
        return {**self._head(), "choices": choices, "usage": self.generation.usage()}

    async def chunks(self) -> AsyncIterator[Completion]:
        options = self._body.stream_options
        with_usage = options is not None and options.include_usage
        always = with_usage and options is not None and options.continuous_usage_stats
        head = self._head()
        if with_usage:
            head["usage"] = None
        offsets: dict[int, int] = {}
        async for prompt, piece in self.generation:
            if always:
                head["usage"] = self.generation.usage()
            index = prompt * self._params.n + piece.index
            text, logprobs = piece.text, None
            if index not in offsets:
                offsets[index] = 0
                text = self._echoes[prompt] + text if self._body.echo else text
            if piece.logprobs:
                logprobs, offsets[index] = legacy_logprobs(
                    self._service.tokenizer, piece.token_ids, piece.logprobs, offsets[index]
                )
            if text or logprobs or piece.finish_reason:
                choice: CompletionChoice = {
                    "index": index,
                    "text": text,
                    "logprobs": logprobs,
                    "finish_reason": piece.finish_reason,
                }
                yield {**head, "choices": [choice]}
        if with_usage:
            yield {**head, "choices": [], "usage": self.generation.usage()}

    def _head(self) -> Completion:
        return {
            "id": self.generation.id,
            "object": "text_completion",
            "created": self.generation.created,
            "model": self._service.settings.model_name,
            "choices": [],
        }


def _prompts(body: CompletionRequest) -> Sequence[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt or isinstance(prompt[0], int):
        return [prompt]  # type: ignore[list-item]
    return prompt


def legacy_logprobs(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    tables: Sequence[LogprobTable | None],
    offset: int = 0,
) -> tuple[LegacyLogprobs, int]:
    """Four parallel lists, and the next token's offset in the text."""
    found: LegacyLogprobs = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for token_id, table in zip(token_ids, tables, strict=True):
        text = tokenizer.token_to_text(token_id)
        found["tokens"].append(text)
        found["text_offset"].append(offset)
        offset += len(text)
        if table is None:  # the first token of a prompt has no prediction
            found["token_logprobs"].append(None)
            found["top_logprobs"].append(None)
            continue
        found["token_logprobs"].append(json_logprob(table[token_id].logprob))
        best: dict[str, float] = {}
        for entry in sorted(table.values(), key=lambda entry: entry.rank):
            best.setdefault(entry.decoded_token, json_logprob(entry.logprob))
        found["top_logprobs"].append(best)
    return found, offset
