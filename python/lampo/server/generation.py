# SPDX-License-Identifier: Apache-2.0
"""The engine's requests of one HTTP call: started together, read as one stream, closed together."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from lampo.async_llm import EngineDeadError, QueueFullError, RequestStream
from lampo.outputs import RequestOutput, StreamOutput
from lampo.sampling_params import SamplingParams
from lampo.server.errors import APIError, bad_value
from lampo.server.protocol import SamplingBody
from lampo.server.replies import Usage, encode_json
from lampo.server.routes import json_response
from lampo.server.service import Service

logger = logging.getLogger("lampo.server")
T = TypeVar("T")
_MANY_ENTRIES = 16384  # a reply is made of them within about 10 ms
MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks

Piece = tuple[int, StreamOutput]


class Generation:
    """Completions of one or more prompts.

    structure_field: the field of the body that has the structure of the answer.

    Attributes:
        id: of the call.
        results: of the finished prompts, by their index.
    """

    def __init__(
        self,
        service: Service,
        kind: str,
        params: SamplingParams,
        client: str | None,
        structure_field: str = "structured_outputs",
    ) -> None:
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.results: dict[int, RequestOutput] = {}
        self._service = service
        self._params = params
        self._structure_field = structure_field
        self._client, self._num_places = client, 0
        self._streams: list[RequestStream] = []
        self._num_prompt_tokens = self._num_output_tokens = 0
        self._begin = time.perf_counter()
        self._last: dict[tuple[int, int], float] = {}

    async def start(self, prompts: list[list[int]], body: SamplingBody) -> None:
        """Submits all prompts to the engine, or none; waits for the client's share of its places.

        Raises: APIError.
        """
        self._num_prompt_tokens = sum(map(len, prompts))
        settings = self._service.settings
        count = len(prompts) * self._params.n
        if count > settings.max_sequences:
            message = f"n: prompts times n must not exceed {settings.max_sequences}"
            raise APIError(400, message, param="n", code="invalid_value")
        await self._service.shares.take(self._client, count)
        self._num_places = count
        try:
            for i, prompt in enumerate(prompts):
                await asyncio.sleep(0)  # others run between the checks of two prompts
                self._streams.append(
                    await self._service.engine.add_request(
                        prompt,
                        self._params,
                        request_id=f"{self.id}-{i}",
                        priority=body.priority or 0,
                        timeout=settings.request_timeout,
                        cache_salt=body.cache_salt,
                    )
                )
        except BaseException as error:
            await self.aclose()
            if isinstance(error, (ValueError, TypeError, QueueFullError, EngineDeadError)):
                raise self._named(engine_error(error)) from None
            raise

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """The pieces of all completions as they come. Raises: APIError."""
        pieces = _single(self._streams[0]) if len(self._streams) == 1 else _merged(self._streams)
        try:
            async for prompt, piece in pieces:
                self._observe(prompt, piece)
                if piece.finish_reason in ("error", "abort"):
                    raise self._failure(prompt, piece)
                yield prompt, piece
        except (QueueFullError, EngineDeadError) as error:
            raise engine_error(error) from None
        finally:
            await pieces.aclose()

    async def finish(self) -> list[RequestOutput]:
        """Waits for everything: the results in the order of the prompts. Raises: APIError."""
        async for _ in self:
            pass
        return [self.results[i] for i in range(len(self._streams))]

    async def aclose(self) -> None:
        """Closes the requests; unfinished ones are aborted."""
        self._service.shares.give(self._client, self._num_places)
        self._num_places = 0
        streams, self._streams = self._streams, []
        for stream in streams:
            await stream.aclose()

    def usage(self) -> Usage:
        """Tokens so far; cached tokens are known for finished prompts only."""
        num_prompt, num_output = self._num_prompt_tokens, self._num_output_tokens
        cached = sum(result.metrics.num_cached_tokens for result in self.results.values())
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    @property
    def num_entries(self) -> int:
        """Tokens so far, times the entries of their log-probabilities."""
        num_tokens = self._num_prompt_tokens + self._num_output_tokens
        return num_tokens * (1 + (self._params.logprobs or 0))

    def _observe(self, prompt: int, piece: StreamOutput) -> None:
        metrics, now = self._service.metrics, time.perf_counter()
        self._num_output_tokens += len(piece.token_ids)
        if piece.token_ids:
            last = self._last.get((prompt, piece.index))
            self._last[prompt, piece.index] = now
            if last is None:
                metrics.time_to_first_token.observe(now - self._begin)
            else:
                metrics.inter_token_latency.observe((now - last) / len(piece.token_ids))
        if piece.request is not None:
            self.results[prompt] = piece.request
            metrics.request_duration.observe(now - self._begin)

    def _failure(self, prompt: int, piece: StreamOutput) -> APIError:
        if piece.finish_reason == "abort":
            return APIError(503, "the request was ended: it took too long, or the server stops",
                            code="aborted")  # fmt: skip
        outputs = piece.request.outputs if piece.request else []
        reason = next((o.error for o in outputs if o.error), "unknown")
        if reason.startswith("structured_outputs: "):  # the structure exceeds a limit
            return self._named(bad_value(ValueError(reason)))
        logger.warning("request %s-%d failed: %s", self.id, prompt, reason)
        return APIError(500, "the generation failed", code="generation_failed")

    def _named(self, error: APIError) -> APIError:
        """The error under the name that the field has in the body."""
        if error.param == "structured_outputs":
            error.param = self._structure_field
        return error


def engine_error(error: Exception) -> APIError:
    if isinstance(error, QueueFullError):
        return APIError(
            429, "too many requests wait", code="queue_full", retry_after=error.retry_after
        )
    if isinstance(error, EngineDeadError):
        return APIError(503, "the engine has stopped", code="engine_dead")
    assert isinstance(error, (ValueError, TypeError))
    return bad_value(error)


def json_logprob(value: float) -> float:
    return value if math.isfinite(value) else MIN_LOGPROB


async def until_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`, and cancels it when the client disconnects."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(client_left(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise APIError(499, "the client has left", code="client_left")
        return task.result()
    finally:
        for other in (task, left):
            other.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def whole_reply(
    generation: Generation, reply: Callable[[list[RequestOutput]], Any], request: Request
) -> Response:
    """The reply as JSON, made of the results; a disconnect ends the requests."""

    async def work() -> str:
        results = await generation.finish()
        if generation.num_entries <= _MANY_ENTRIES:
            return encode_json(reply(results))
        return await asyncio.to_thread(lambda: encode_json(reply(results)))

    try:
        text = await until_disconnected(request, work())
    finally:
        await generation.aclose()
    return json_response(text, {"x-request-id": generation.id})


async def client_left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _single(stream: RequestStream) -> AsyncGenerator[Piece, None]:
    async for piece in stream:
        yield 0, piece


async def _merged(streams: list[RequestStream]) -> AsyncGenerator[Piece, None]:
    """The pieces of many streams in the order of their arrival."""
    queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue(4 * len(streams))

    async def read(i: int, stream: RequestStream) -> None:
        try:
            async for piece in stream:
                await queue.put((i, piece))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.ensure_future(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
