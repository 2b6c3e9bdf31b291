# SPDX-License-Identifier: Apache-2.0
"""Shared by all endpoints: the engine, the settings, and tokenization off the event loop."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from lampo.async_llm import AsyncLLM
from lampo.sampling_params import SamplingParams
from lampo.server.errors import APIError, bad_value
from lampo.server.metrics import Metrics
from lampo.server.protocol import SAMPLING_FIELDS, Body, ChatInput, SamplingBody, TokenizeRequest
from lampo.server.settings import Settings
from lampo.server.shares import Shares
from lampo.text.structured_outputs import StructuredOutputs
from lampo.text.tokenizer import Tokenizer

T = TypeVar("T")
LONG_TEXT = 4096  # characters: about 1 ms of tokenization, acceptable on the event loop


class Service:
    """The model, shared by all calls."""

    def __init__(self, engine: AsyncLLM, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics(engine, settings.model_name)
        self.started = int(time.time())
        share = math.ceil(engine.llm.max_num_seqs * settings.client_share)
        self.shares = Shares(share)
        self._threads = ThreadPoolExecutor(2, "lampo-tokenizer")

    @property
    def tokenizer(self) -> Tokenizer:
        return self.engine.llm.tokenizer

    def check_model(self, body: Body) -> None:
        """Raises: APIError, 404, if the request names another model."""
        if body.model is not None and body.model != self.settings.model_name:
            message = f"model: {body.model!r} is not served here"
            raise APIError(404, message, param="model", code="model_not_found")

    async def encode(
        self, prompts: Sequence[str | list[int]], *, add_bos: bool = True, max_tokens: int
    ) -> list[list[int]]:
        """The prompts, texts as token ids. Raises: APIError."""

        def work() -> list[list[int]]:
            encode = functools.partial(
                self.tokenizer.encode, add_bos=add_bos, max_tokens=max_tokens
            )
            return [encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]

        size = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        return await self._checked(work, in_thread=size > LONG_TEXT)

    async def encode_chat(
        self, body: ChatInput | TokenizeRequest, tools: Any, arguments: Any, *, max_tokens: int
    ) -> list[int]:
        """A chat's token ids, by the model's template. Raises: APIError."""

        def work() -> list[int]:
            return self.tokenizer.encode_chat(
                body.messages or [],
                add_generation_prompt=body.add_generation_prompt,
                continue_final_message=body.continue_final_message,
                template_kwargs=arguments,
                tools=tools,
                max_tokens=max_tokens,
            )

        return await self._checked(work, in_thread=True)

    @property
    def max_listed_tokens(self) -> int:
        return max(self.settings.max_listed_tokens, self.engine.llm.max_model_len)

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Runs long work beside the event loop; it must not hold Python's lock for long."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _checked(self, work: Callable[[], T], in_thread: bool) -> T:
        try:
            return await self.run_in_thread(work) if in_thread else work()
        except ValueError as error:
            raise bad_value(error) from None

    def sampling_params(self, body: SamplingBody, **more: Any) -> SamplingParams:
        """The sampling parameters of a body. Raises: APIError naming the field."""
        fields = {name: getattr(body, name) for name in SAMPLING_FIELDS}
        fields |= {"logit_bias": _token_keys(body.logit_bias or {}), **more}
        try:
            if body.structured_outputs is not None:
                if body.structured_outputs.grammar and not self.settings.allow_grammars:
                    raise ValueError("grammar: this server takes none; see --allow-grammars")
                fields["structured_outputs"] = StructuredOutputs(
                    **body.structured_outputs.model_dump(exclude_none=True)
                )
            params = SamplingParams(**{k: v for k, v in fields.items() if v is not None})
        except (ValueError, TypeError) as error:
            raise bad_value(error) from None
        if params.n > self.settings.max_n:
            message = f"n: expected at most {self.settings.max_n}, got {params.n}"
            raise APIError(400, message, param="n", code="invalid_value")
        if body.stream_options is not None and not body.stream:
            message = "stream_options: is for stream: true only"
            raise APIError(400, message, param="stream_options", code="invalid_value")
        return params

    def check_logprobs(self, name: str, value: int | None) -> int | None:
        limit = self.settings.max_logprobs
        if value is not None and not 0 <= value <= limit:
            message = f"{name}: expected a value in [0, {limit}], got {value}"
            raise APIError(400, message, param=name, code="invalid_value")
        return value

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.engine.close()


def _token_keys(bias: dict[str, float]) -> dict[int, float]:
    """Token ids from JSON's string keys."""
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            message = f"logit_bias: expected token ids as keys, got {key[:32]!r}"
            raise APIError(400, message, param="logit_bias", code="invalid_value")
    return {int(key): value for key, value in bias.items()}
