# SPDX-License-Identifier: Apache-2.0
"""One model for many requests at once, from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lampo.checks import check_integer
from lampo.engine.llm_engine import EngineStats
from lampo.engine.request import Request
from lampo.llm import LLM
from lampo.outputs import StreamOutput
from lampo.prompts import Messages, Prompt
from lampo.sampling_params import SamplingParams

logger = logging.getLogger("lampo")

# Longer texts are tokenized off the event loop.
_LONG_TEXT = 4096
_MAX_JOINED = 64  # tokens
_FAILING_STEPS = 3  # in a row; one may be due to its requests

Piece = StreamOutput | Exception


class QueueFullError(RuntimeError):
    """Too many requests are waiting.

    Attributes:
        retry_after: seconds until a retry may succeed.
    """

    def __init__(self, num_waiting: int, retry_after: float) -> None:
        super().__init__(f"{num_waiting} requests are waiting: try again later")
        self.retry_after = retry_after


class EngineDeadError(RuntimeError):
    """Nothing can be generated any more: the model was closed, or its loop has ended."""


@dataclass(frozen=True)
class Health:
    """The state of the step loop.

    Attributes:
        alive: whether it runs.
        busy: whether it has work.
        heartbeat_age: seconds since it last began or ended a step.
        failing: whether its last steps have all failed, as those of a GPU with a lost context do.
    """

    alive: bool
    busy: bool
    heartbeat_age: float
    failing: bool


class RequestStream:
    """The pieces of one request, as they come; the last one has its whole result. Pieces that wait
    to be read are joined.

    An asynchronous iterator. Leaving it, by `aclose`, cancellation or the end of an `async with`,
    aborts the request.

    Attributes:
        request_id: the request's.
        prompt_token_ids: the prompt as the model sees it.
    """

    def __init__(
        self, request_id: str, prompt_token_ids: list[int], abort: Callable[[str], None]
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self._abort = abort
        self._pieces: deque[Piece] = deque()
        self._latest: dict[int, StreamOutput] = {}  # unread, by completion
        self._arrived = asyncio.Event()
        self._ended = False

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> StreamOutput:
        if self._ended:
            raise StopAsyncIteration
        try:
            while not self._pieces:
                self._arrived.clear()
                await self._arrived.wait()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        piece = self._pieces.popleft()
        if isinstance(piece, Exception):
            self._ended = True
            raise piece
        if self._latest.get(piece.index) is piece:
            del self._latest[piece.index]
        self._ended = piece.request is not None
        return piece

    async def aclose(self) -> None:
        """Aborts the request unless it has ended. Idempotent."""
        if not self._ended:
            self._ended = True
            self._abort(self.request_id)

    async def __aenter__(self) -> RequestStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def put(self, piece: Piece) -> None:
        """Called in the event loop. Unread pieces of a completion become one, up to a size, so that
        a slow reader does not pile them up."""
        self._arrived.set()
        if isinstance(piece, StreamOutput) and piece.request is None:
            last = self._latest.get(piece.index)
            if last is not None and len(last.token_ids) < _MAX_JOINED:
                _join(last, piece)
                return
            self._latest[piece.index] = piece
        self._pieces.append(piece)


def _join(last: StreamOutput, piece: StreamOutput) -> None:
    """Appends a piece to the one before it."""
    last.text += piece.text
    last.token_ids = last.token_ids + piece.token_ids
    if piece.logprobs is not None:
        last.logprobs = (last.logprobs or []) + piece.logprobs
    if piece.num_kept is not None:
        last.num_kept = (last.num_kept or []) + piece.num_kept
    last.finish_reason = piece.finish_reason


Message = tuple[asyncio.AbstractEventLoop, RequestStream, Piece]


class AsyncLLM:
    """Many requests over one :class:`LLM`; its steps run in a thread of their own.

    Args:
        llm: the model; it may be used directly at the same time, and is closed by `close`.
        max_waiting: completions that may wait, at most.

    Example:
        >>> async_llm = AsyncLLM(LLM())
        >>> async for piece in await async_llm.add_request("Once upon a time"):
        ...     print(piece.text, end="")
    """

    def __init__(self, llm: LLM, *, max_waiting: int = 256) -> None:
        self.llm = llm
        self.max_waiting = check_integer("max_waiting", max_waiting, 1, 1 << 20)
        self._shared = llm.shared_engine()
        self._streams: dict[str, tuple[asyncio.AbstractEventLoop, RequestStream]] = {}
        self._outbox: list[Message] = []
        # Requests to add and abort between two steps.
        self._added: deque[tuple[RequestStream, Request]] = deque()
        self._aborted: deque[str] = deque()
        self._wake = threading.Event()
        self._closing = self._draining = False
        self._heartbeat = time.monotonic()
        self._busy = False
        self._thread = threading.Thread(target=self._loop, name="lampo-steps", daemon=True)
        self._thread.start()

    async def add_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
    ) -> RequestStream:
        """Queues one prompt.

        Args:
            prompt: a text or token ids.
            sampling_params: as in `LLM.generate`, with any `n`.
            request_id: a name, unique among the unfinished requests.
            priority: smaller is sooner; a level stands for 10 seconds of waiting.
            timeout: seconds until the request is aborted.
            cache_salt: requests share prefixes only with those of the same salt.

        Raises:
            ValueError, TypeError: an argument that does not fit, by name; nothing was queued.
            QueueFullError: `max_waiting` was reached.
            EngineDeadError: the model is closed.
        """
        return await self._add(
            prompt,
            sampling_params or SamplingParams(),
            request_id=request_id,
            priority=priority,
            timeout=timeout,
            cache_salt=cache_salt,
            start_time=time.perf_counter(),
        )

    async def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
    ) -> RequestStream:
        """Queues one conversation, as `LLM.chat` writes it; else as :meth:`add_request`."""
        self._check_open()
        start_time = time.perf_counter()
        return await self._add(
            await asyncio.to_thread(
                self.llm.encode_chat,
                messages,
                chat_template_kwargs,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            ),
            sampling_params or SamplingParams(),
            request_id=request_id,
            priority=priority,
            timeout=timeout,
            cache_salt=cache_salt,
            start_time=start_time,
        )

    def abort(self, request_id: str) -> None:
        """Ends a request early; its stream gets a last piece. Unknown names are ignored."""
        self._aborted.append(request_id)
        self._wake.set()

    def stats(self) -> EngineStats:
        """Counts of the engine; requests that were just added may not be counted yet."""
        return self._shared.engine.stats()

    def health(self) -> Health:
        return Health(
            alive=self._thread.is_alive() and not self._closing,
            busy=self._busy,
            heartbeat_age=time.monotonic() - self._heartbeat,
            failing=self._shared.engine.num_failed_in_a_row >= _FAILING_STEPS,
        )

    async def drain(self, timeout: float) -> bool:
        """Refuses new requests and waits for unfinished ones; after `timeout` seconds, aborts them.

        Returns:
            whether all of them were completed.
        """
        self._draining = True
        end = time.monotonic() + timeout
        while self._streams and time.monotonic() < end and self._thread.is_alive():
            await asyncio.sleep(0.02)
        completed = not self._streams
        for request_id in list(self._streams):
            self.abort(request_id)
        return completed

    def close(self) -> None:
        """Aborts all requests, ends the thread and frees the model. Idempotent."""
        self._closing = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.llm.close()

    async def _add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None,
        priority: int,
        timeout: float | None,
        cache_salt: str | None,
        start_time: float,
    ) -> RequestStream:
        self._check_open()

        def make() -> Request:
            return self.llm.request(
                prompt,
                params,
                request_id=request_id,
                priority=priority,
                timeout=timeout,
                cache_salt=cache_salt,
                start_time=start_time,
            )

        size = len(prompt) + 1024 * (params.n - 1)
        try:
            # A grammar takes up to a second to compile.
            if size > _LONG_TEXT or params.structured_outputs is not None:
                request = await asyncio.to_thread(make)
            else:
                request = make()
        finally:
            self._check_open()  # it may have been closed meanwhile
        waiting = len(self._shared.engine.scheduler.waiting) + len(self._added)
        if waiting >= self.max_waiting:
            raise QueueFullError(waiting, retry_after=1.0 + waiting / 32)
        if request.request_id in self._streams:
            raise ValueError(f"request_id: {request.request_id!r} is in use")
        stream = RequestStream(request.request_id, request.prompt_token_ids, self.abort)
        self._streams[request.request_id] = (asyncio.get_running_loop(), stream)
        self._added.append((stream, request))
        self._wake.set()
        return stream

    def _check_open(self) -> None:
        if self._closing or not self._thread.is_alive():
            raise EngineDeadError("the model is closed, or its loop has ended")
        if self._draining:
            raise EngineDeadError("the model is being closed")

    # All methods from here on run in the thread.

    def _loop(self) -> None:
        try:
            while not self._closing:
                self._busy = self._shared.engine.has_unfinished or bool(self._added)
                self._heartbeat = time.monotonic()
                if not self._busy:
                    self._wake.wait(timeout=1.0)
                self._wake.clear()
                with self._shared.lock:
                    self._one_step()
                    messages, self._outbox = self._outbox, []
                _post(messages)
        except SystemExit:  # the process exits, and the readers of the streams with it
            return
        except BaseException:
            logger.exception("the step loop has ended")
        self._end()

    def _one_step(self) -> None:
        while self._added:
            self._submit(*self._added.popleft())
        while self._aborted:
            self._shared.abort(self._aborted.popleft())
        self._busy = self._shared.engine.has_unfinished
        if self._busy:
            self._heartbeat = time.monotonic()
            self._shared.step()

    def _submit(self, stream: RequestStream, request: Request) -> None:
        try:
            self._shared.add(request, self._take)
        except Exception as error:  # the name is in use by another caller of the engine
            self._take_out(stream.request_id, error)

    def _take(self, piece: StreamOutput) -> None:
        """The sink of all requests; called by the thread that steps."""
        if piece.request is not None:
            self._take_out(piece.request_id, piece)
        else:
            self._outbox.append((*self._streams[piece.request_id], piece))
        self._wake.set()

    def _take_out(self, request_id: str, last: Piece) -> None:
        self._outbox.append((*self._streams.pop(request_id), last))

    def _end(self) -> None:
        """Ends every stream."""
        self._closing = True
        self._busy = False
        with self._shared.lock:
            for request_id in list(self._streams):
                with contextlib.suppress(Exception):
                    self._shared.abort(request_id)
            for request_id in list(self._streams):
                error = EngineDeadError("the model was closed while the request ran")
                self._take_out(request_id, error)
            messages, self._outbox = self._outbox, []
        _post(messages)


def _post(messages: list[Message]) -> None:
    """Passes the pieces of a step to the event loops, one call per loop."""

    def put(batch: list[Message]) -> None:
        for _, stream, piece in batch:
            stream.put(piece)

    for loop in dict.fromkeys(loop for loop, _, _ in messages):
        with contextlib.suppress(RuntimeError):  # that loop is closed
            loop.call_soon_threadsafe(put, [m for m in messages if m[0] is loop])
