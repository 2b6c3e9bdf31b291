# SPDX-License-Identifier: Apache-2.0
"""An AsyncLLM without a model, for tests of the server: known tokens, delays, planted failures.

Completion i of a prompt repeats the prompt's own bytes, from byte i on, up to max_tokens. A prompt
that contains one of these words fails:

    FULL    the queue is full
    DEAD    the engine is dead
    DIES    the engine dies after two tokens
    FAILS   the generation fails after two tokens
    COSTS   the structure exceeds a limit after two tokens
    BUG     add_request raises an unexpected error
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from checkpoints import write_tokenizer

from lampo.async_llm import EngineDeadError, EngineStats, Health, QueueFullError
from lampo.outputs import (
    CompletionOutput,
    Logprob,
    LogprobTable,
    RequestMetrics,
    RequestOutput,
    StreamOutput,
)
from lampo.sampling_params import SamplingParams
from lampo.text.tokenizer import Tokenizer, TooManyTokensError

VOCAB_SIZE = 320


class FakeAsyncLLM:
    """Attributes: delay, seconds per token; running and aborted, ids of requests."""

    def __init__(self, folder: Path, *, max_model_len: int = 256, delay: float = 0.0) -> None:
        folder.mkdir(exist_ok=True)
        write_tokenizer(folder, VOCAB_SIZE)
        self.llm: Any = SimpleNamespace(
            tokenizer=Tokenizer.from_directory(folder),
            config=SimpleNamespace(vocab_size=VOCAB_SIZE),
            max_model_len=max_model_len,
            generation_config={},
            max_num_seqs=64,
            path=folder,
        )
        self.delay = delay
        self.running: dict[str, SamplingParams] = {}
        self.aborted: list[str] = []
        self.added: list[dict[str, Any]] = []
        self.state = Health(alive=True, busy=False, heartbeat_age=0.0, failing=False)
        self.finished: Counter[str] = Counter()
        self.drained = self.closed = False
        self._names = itertools.count()

    async def add_request(
        self,
        prompt: str | list[int],
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
    ) -> FakeStream:
        assert not isinstance(prompt, str)
        request_id = request_id or f"request-{next(self._names)}"
        if not -1000 <= priority <= 1000:
            raise ValueError(f"priority: expected a value in [-1000, 1000], got {priority}")
        if not prompt:
            raise ValueError("prompt: is empty")
        for i, token_id in enumerate(prompt):
            if not 0 <= token_id < self.llm.config.vocab_size:
                raise ValueError(f"prompt[{i}]: expected a value in [0, 319], got {token_id}")
        if len(prompt) >= self.llm.max_model_len:
            raise TooManyTokensError(str(len(prompt)), f"prompt: has {len(prompt)} tokens")
        text = self.llm.tokenizer.decode(prompt)
        if "FULL" in text:
            raise QueueFullError("256 requests wait", retry_after=2.5)
        if "DEAD" in text or self.drained:
            raise EngineDeadError("the step loop has ended")
        if "BUG" in text:
            raise KeyError("a secret of the implementation")
        await asyncio.sleep(0)
        params = (sampling_params or SamplingParams()).resolved({})
        self.running[request_id] = params
        self.added.append(
            {"params": params, "priority": priority, "timeout": timeout, "cache_salt": cache_salt}
        )
        return FakeStream(self, request_id, prompt, params)

    def table(self, token_id: int, count: int) -> LogprobTable:
        """The token, second best, and others around it."""
        others = [t for t in range(3, 3 + count + 1) if t != token_id]
        ranked = [*others[:1], token_id, *others[1:count]][: max(count, 2)]
        text = self.llm.tokenizer.token_to_text
        return {
            t: Logprob(-0.5 * rank if rank < 5 else float("-inf"), rank, text(t))
            for rank, t in enumerate(ranked, 1)
            if rank <= count or t == token_id
        }

    def abort(self, request_id: str) -> None:
        if self.running.pop(request_id, None) is not None:
            self.aborted.append(request_id)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.running),
            num_waiting=0,
            num_pages=100,
            num_free_pages=70,
            num_cached_pages=20,
            num_steps=7,
            num_preemptions=1,
            num_prompt_tokens=50,
            num_cached_prompt_tokens=16,
            num_output_tokens=40,
            finished=dict(self.finished),
        )

    def health(self) -> Health:
        return self.state

    async def drain(self, timeout: float) -> bool:
        self.drained = True
        deadline = asyncio.get_running_loop().time() + timeout
        while self.running:
            if asyncio.get_running_loop().time() > deadline:
                for request_id in list(self.running):
                    self.abort(request_id)
                return False
            await asyncio.sleep(0.005)
        return True

    def close(self) -> None:
        self.closed = True


class FakeStream:
    def __init__(
        self, engine: FakeAsyncLLM, request_id: str, prompt: list[int], params: SamplingParams
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt
        self._engine = engine
        self._params = params
        self._pieces = self._generate()

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> StreamOutput:
        return await self._pieces.__anext__()

    async def aclose(self) -> None:
        await self._pieces.aclose()
        self._engine.abort(self.request_id)

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _generate(self) -> AsyncIterator[StreamOutput]:
        engine, params, prompt = self._engine, self._params, self.prompt_token_ids
        tokenizer, text = engine.llm.tokenizer, engine.llm.tokenizer.decode(prompt)
        assert params.max_tokens is not None
        length = min(params.max_tokens, engine.llm.max_model_len - len(prompt))
        outputs = [
            CompletionOutput(i, logprobs=None if params.logprobs is None else [])
            for i in range(params.n)
        ]
        for k in range(max(length, 1)):
            await asyncio.sleep(engine.delay)
            for output in outputs:
                last, reason = k + 1 >= length, None
                token_ids = [] if length == 0 else [prompt[(output.index + k) % len(prompt)]]
                output.token_ids += token_ids
                output.text = tokenizer.decode(output.token_ids)
                tables = None
                if output.logprobs is not None:
                    tables = [engine.table(t, params.logprobs or 0) for t in token_ids]
                    output.logprobs += tables
                if k == 1 and "DIES" in text:
                    raise EngineDeadError("the step loop has ended")
                if k == 1 and "FAILS" in text:
                    last, reason, output.error = True, "error", "a secret of the implementation"
                if k == 1 and "COSTS" in text:
                    last, reason = True, "error"
                    output.error = "structured_outputs: ParserTooComplex: too many items"
                if self.request_id not in engine.running:
                    last, reason = True, "abort"
                output.finish_reason = (reason or "length") if last else None
                done = last and output is outputs[-1]
                request = self._request(outputs) if done else None
                if done:
                    engine.running.pop(self.request_id, None)
                    engine.finished[output.finish_reason or ""] += params.n
                yield StreamOutput(
                    tokenizer.decode(token_ids),
                    token_ids,
                    tables,
                    output.finish_reason,
                    request,
                    self.request_id,
                    output.index,
                )
            if reason is not None:
                return

    def _request(self, outputs: list[CompletionOutput]) -> RequestOutput:
        prompt, count = self.prompt_token_ids, self._params.prompt_logprobs
        tables = None
        if count is not None:
            tables = [None, *(self._engine.table(t, count) for t in prompt[1:])]
        metrics = RequestMetrics(
            num_prompt_tokens=len(prompt),
            num_output_tokens=sum(len(o.token_ids) for o in outputs),
            num_cached_tokens=len(prompt) // 2,
        )
        return RequestOutput(None, prompt, tables, outputs, metrics)
