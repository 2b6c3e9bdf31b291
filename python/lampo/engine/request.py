# SPDX-License-Identifier: Apache-2.0
"""A request in the engine: a prompt, and its completions while they are generated."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from typing import TYPE_CHECKING

from lampo.checks import check_integer, check_number
from lampo.engine.output_text import OutputText
from lampo.engine.page_allocator import PageAllocator, PrefixChain
from lampo.engine.sampling_rules import PenaltyCounts, SamplingRules
from lampo.outputs import (
    CompletionOutput,
    LogprobTable,
    RequestMetrics,
    RequestOutput,
    StreamOutput,
)
from lampo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lampo.text.tokenizer import Tokenizer

# Seconds of waiting per level of priority. A request is thus overtaken for a bounded time only.
PRIORITY_SECONDS = 10.0
MAX_PRIORITY = 1000
MAX_TIMEOUT = 86400.0
MAX_NAME_LENGTH = 256

_numbers = itertools.count()


class Request:
    """A prompt with its completions, arrival and priority.

    Complete when constructed, and used once: `LLM.request` makes it, `LLMEngine.add` takes it.

    Args:
        prompt_token_ids: the prompt, 1 to `max_len` ids of the vocabulary.
        params: resolved sampling parameters (`SamplingParams.resolved`).
        tokenizer, vocab_size, eos_token_ids: of the model.
        max_len: longest sequence, prompt and output.
        page_size: tokens per page of the engine's pool.
        prompt: the text; None if token ids were given.
        request_id: unique among the unfinished requests; by default "request-<number>".
        priority: smaller is sooner; a level stands for PRIORITY_SECONDS of arrival.
        timeout: seconds from now until it is aborted; None: never.
        cache_salt: requests of different salts never share pages.
        start_time: time.perf_counter() from which the time to the first token counts; now if None.

    Attributes:
        sequences: the completions. The first computes the prompt; the others then share its pages.
        rules: the parameters in the sampler's form, shared by the completions.
        number: index among the requests of this process.
        arrival: time.monotonic() at which it was made.
        deadline: time.monotonic() at which it is aborted; infinity without a timeout.
        num_cached_tokens: prompt tokens found in the prefix cache.
        num_unfinished: completions that have not returned their last piece.
        prompt_computed: whether the first token has been drawn and the other completions started.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.
    """

    def __init__(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        tokenizer: Tokenizer,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_len: int,
        page_size: int,
        prompt: str | None = None,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
        start_time: float | None = None,
    ) -> None:
        if not prompt_token_ids:
            raise ValueError("prompt: is empty")
        check_integer("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
        if timeout is not None:
            check_number("timeout", timeout, 0.0, MAX_TIMEOUT, True)
        for name, value in (("cache_salt", cache_salt), ("request_id", request_id)):
            if value is not None and not 0 < len(value) <= MAX_NAME_LENGTH:
                raise ValueError(f"{name}: expected 1 to {MAX_NAME_LENGTH} characters")
        self.number = next(_numbers)
        self.request_id = request_id or f"request-{self.number}"
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.priority = priority
        self.arrival = time.monotonic()
        self.deadline = math.inf if timeout is None else self.arrival + timeout
        self.start_time = time.perf_counter() if start_time is None else start_time
        self.rules = SamplingRules(
            params,
            prompt_token_ids,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
        )
        assert params.max_tokens is not None
        self.max_len = min(max_len, len(prompt_token_ids) + params.max_tokens)
        self.page_size = page_size
        self.cache_salt = b"" if cache_salt is None else b"salt:" + cache_salt.encode()
        self.num_cached_tokens = 0
        self.num_unfinished = params.n
        self.prompt_computed = False
        seed = secrets.randbits(62) if params.seed is None else params.seed
        self.sequences = [
            Sequence(self, i, (seed + i + 2**63) % 2**64 - 2**63, tokenizer)
            for i in range(params.n)
        ]

    def result(self, allocator: PageAllocator, bytes_per_page: int) -> RequestOutput:
        """The whole result; metrics count shared prompt pages once, and FREED pages not at all."""
        first = self.sequences[0]
        unseen = [allocator.first_seen(s.num_computed) for s in self.sequences]
        pages = sum(allocator.pages_for(s.num_computed) for s in self.sequences) - sum(unseen)
        prompt_pages = first.num_prompt_tokens // allocator.page_size
        pages -= sum(
            max(prompt_pages - freed, 0)
            for s, freed in zip(self.sequences[1:], unseen[1:], strict=True)
            if s.num_computed > 0
        )
        metrics = first.metrics()
        metrics.num_output_tokens = sum(s.num_output_tokens for s in self.sequences)
        metrics.num_cached_tokens = self.num_cached_tokens
        metrics.cache_bytes = pages * bytes_per_page
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=first.prompt_logprobs,
            prompt_num_kept=first.prompt_num_kept,
            outputs=[s.output for s in self.sequences],
            metrics=metrics,
        )


class Sequence:
    """Tokens, pages and text of one completion, and the rules that end it.

    Args:
        request: its request.
        index: among the request's completions.
        seed: of this completion.
        tokenizer: the model's.

    Attributes:
        order: sort key of the scheduler, over sequences of all requests.
        token_ids: prompt and output.
        num_computed: tokens with keys and values in the cache.
        pages: pages held, in order of position, FREED for those outside all windows; replaced,
            never mutated.
        state_slot: its slot for a state; None: it has none.
        chain: the keys of its pages, for the prefix cache.
        params, rules: the request's.
        max_len: length of prompt and output at which it ends.
        penalties: the counts that penalties need; None without them.
        grammar: state of the grammar that it must follow; None without one.
        stop_tokens_banned: whether min_tokens keeps stop tokens from being drawn.
        needs_own_draw: whether a draw by temperature and cuts is not enough: penalties, biases,
            masks or banned tokens change the logits, or processed log-probabilities are requested.
        prompt_logprobs, prompt_num_kept: filled during prefill if requested.
        output: the result so far.
    """

    def __init__(self, request: Request, index: int, seed: int, tokenizer: Tokenizer) -> None:
        params, rules = request.params, request.rules
        self.request = request
        self.params = params
        self.rules = rules
        self.seed = seed
        # The longest waiting comes first; among completions of one request, the first.
        urgency = request.arrival + PRIORITY_SECONDS * request.priority
        self.order = (urgency, request.number, index)
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_computed = 0
        self.pages: list[int] = []
        self.state_slot: int | None = None
        self.chain = PrefixChain(request.page_size, request.cache_salt)
        self.max_len = request.max_len
        self.penalties = PenaltyCounts(rules) if rules.has_penalties else None
        self.grammar = None if rules.grammar is None else rules.grammar.fork()
        self.stop_tokens_banned = params.min_tokens > 0
        self.needs_own_draw = rules.needs_own_draw or self.stop_tokens_banned
        self.prompt_logprobs: list[LogprobTable | None] | None = (
            [None] if params.prompt_logprobs is not None and index == 0 else None
        )
        self.prompt_num_kept: list[int | None] | None = (
            None if self.prompt_logprobs is None else [None]
        )
        self.output = CompletionOutput(index)
        if params.logprobs is not None:
            self.output.logprobs, self.output.num_kept = [], []
        self.first_token_time: float | None = None
        self.last_token_time: float | None = None
        # Returned already: tokens, and the last piece.
        self._num_streamed_tokens = 0
        self._ended = False
        self._text = OutputText(params, rules.stops, request.prompt_token_ids, tokenizer)
        if self.max_len <= self.num_prompt_tokens:
            self._finish("length")

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    @property
    def done(self) -> bool:
        """Whether nothing is left to compute, the prompt's log-probabilities included."""
        reason = self.output.finish_reason
        if reason is None or self.prompt_logprobs is None or reason in ("abort", "error"):
            return reason is not None
        return len(self.prompt_logprobs) == self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens without keys and values in the cache."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.output.token_ids)

    def append(
        self,
        token_id: int,
        logprobs: LogprobTable | None = None,
        now: float | None = None,
        num_kept: int = 0,
    ) -> None:
        """Appends a sampled token: extends the text and applies the stop rules.

        Args:
            token_id: the token.
            logprobs: its table, if requested.
            now: time.perf_counter(), of the step.
            num_kept: tokens left by the cuts, used with `logprobs`.
        """
        self.last_token_time = time.perf_counter() if now is None else now
        if self.first_token_time is None:
            self.first_token_time = self.last_token_time
        output, rules = self.output, self.rules
        self.token_ids.append(token_id)
        output.token_ids.append(token_id)
        if logprobs is not None and output.logprobs is not None:
            output.logprobs.append(logprobs)
            if output.num_kept is not None:
                output.num_kept.append(num_kept)
        if self.penalties is not None:
            self.penalties.add(token_id)
        if token_id in rules.stop_ids and not self.stop_tokens_banned:
            output.stop_reason = None if token_id in rules.eos_ids else token_id
            self._finish("stop")
            return
        if self.stop_tokens_banned and len(output.token_ids) >= self.params.min_tokens:
            self.stop_tokens_banned = False
            self.needs_own_draw = rules.needs_own_draw
        if self.grammar is not None and (error := self.grammar.accept(token_id)):
            self.fail(error)
            return
        self._take_text(self._text.push(token_id, ignore_stops=self.stop_tokens_banned))
        if output.finish_reason is None:
            if self.grammar is not None and self.grammar.complete:
                self._finish("stop")
            elif len(self.token_ids) >= self.max_len:
                self._finish("length")

    def fail(self, error: str, reason: str = "error") -> None:
        """Ends the completion early: "error", or "abort" for an aborted request."""
        if not self.done:
            self.output.error = error
            self._take_text(self._text.flush(ignore_stops=True))
            self.output.finish_reason = reason

    def new_piece(self) -> StreamOutput | None:
        """The tokens since the last call and the text that they made final; None if nothing is new.

        The last piece is returned once.
        """
        output, start = self.output, self._num_streamed_tokens
        end = len(output.token_ids)
        done = self.done
        if (end == start and not done) or self._ended:
            return None
        self._num_streamed_tokens, self._ended = end, done
        return StreamOutput(
            text=self._text.take(final=self.finished),
            token_ids=output.token_ids[start:end],
            logprobs=None if output.logprobs is None else output.logprobs[start:end],
            num_kept=None if output.num_kept is None else output.num_kept[start:end],
            finish_reason=output.finish_reason if done else None,
            request_id=self.request.request_id,
            index=output.index,
        )

    def metrics(self) -> RequestMetrics:
        metrics = RequestMetrics(
            num_prompt_tokens=self.num_prompt_tokens, num_output_tokens=self.num_output_tokens
        )
        if self.first_token_time is not None and self.last_token_time is not None:
            metrics.time_to_first_token = self.first_token_time - self.request.start_time
            if self.num_output_tokens > 1:
                decode_time = self.last_token_time - self.first_token_time
                metrics.time_per_output_token = decode_time / (self.num_output_tokens - 1)
        return metrics

    def _take_text(self, stop: str | None) -> None:
        self.output.text = self._text.text
        if stop is not None:
            self.output.stop_reason = stop
            self.output.finish_reason = "stop"

    def _finish(self, reason: str) -> None:
        self._take_text(self._text.flush(ignore_stops=self.stop_tokens_banned))
        if self.output.finish_reason is None:
            self.output.finish_reason = reason
