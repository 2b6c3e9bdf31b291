# SPDX-License-Identifier: Apache-2.0
"""One completion while it is being generated."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from lampo.detokenizer import StreamDecoder
from lampo.outputs import CompletionOutput, LogprobTable, RequestMetrics, StreamOutput
from lampo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lampo.engine.page_allocator import PrefixChain
    from lampo.engine.request import Request
    from lampo.tokenizer import Tokenizer


class Sequence:
    """Tokens, pages and text of one completion, and the rules that end it.

    Attributes:
        token_ids: prompt and output.
        num_computed: tokens whose keys and values are in the cache.
        pages: pages held, in order of position; replaced, never edited.
        chain: the keys of its pages, for the prefix cache.
        request: to which it belongs.
        order: who comes first, among sequences of all requests.
        params: resolved sampling parameters.
        seed: of this completion.
        max_len: length of prompt and output at which it ends.
        stop_ids: tokens that end it: end of sequence and stop_token_ids.
        prompt_logprobs: filled during prefill where asked for.
    """

    def __init__(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        index: int,
        seed: int,
        max_len: int,
        eos_token_ids: frozenset[int],
        tokenizer: Tokenizer,
        start_time: float,
    ) -> None:
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed = 0
        self.pages: list[int] = []
        self.chain: PrefixChain
        self.request: Request
        self.order: tuple[float, int, int]
        self.params = params
        self.seed = seed
        self.eos_ids = frozenset() if params.ignore_eos else eos_token_ids
        self.stop_ids = self.eos_ids | frozenset(params.stop_token_ids)
        self._changes_logits = bool(
            params.repetition_penalty != 1.0
            or params.presence_penalty
            or params.frequency_penalty
            or params.logit_bias
        )
        assert params.max_tokens is not None
        self.max_len = min(max_len, self.num_prompt_tokens + params.max_tokens)
        self.output_counts: Counter[int] = Counter()
        self.prompt_logprobs: list[LogprobTable | None] | None = (
            [None] if params.prompt_logprobs is not None and index == 0 else None
        )
        self.output = CompletionOutput(index, logprobs=[] if params.logprobs is not None else None)
        self.start_time = start_time
        self.first_token_time: float | None = None
        self.last_token_time: float | None = None
        # What has been handed out: characters of output.text, tokens, and the end.
        self._num_streamed = self._num_streamed_tokens = 0
        self._ended = False
        self._decoder = StreamDecoder(
            tokenizer,
            skip_special_tokens=params.skip_special_tokens,
            prompt_token_ids=prompt_token_ids,
        )
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
        """Tokens whose keys and values are not in the cache."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.output.token_ids)

    @property
    def stop_tokens_banned(self) -> bool:
        return self.num_output_tokens < self.params.min_tokens

    @property
    def changes_logits(self) -> bool:
        """Whether penalties, biases or banned tokens change the logits before the draw."""
        return self._changes_logits or self.stop_tokens_banned

    def append(self, token_id: int, logprobs: LogprobTable | None) -> None:
        """Takes a sampled token: extends the text and applies the stop rules."""
        self.last_token_time = time.perf_counter()
        if self.first_token_time is None:
            self.first_token_time = self.last_token_time
        self.token_ids.append(token_id)
        self.output_counts[token_id] += 1
        output = self.output
        output.token_ids.append(token_id)
        if output.logprobs is not None and logprobs is not None:
            output.logprobs.append(logprobs)
        if token_id in self.stop_ids and self.num_output_tokens > self.params.min_tokens:
            output.stop_reason = None if token_id in self.eos_ids else token_id
            self._finish("stop")
            return
        self._add_text(self._decoder.push(token_id))
        if not self.finished and len(self.token_ids) >= self.max_len:
            self._finish("length")

    def fail(self, error: str, reason: str = "error") -> None:
        """Ends it early: "error", or "abort" for a request that was given up."""
        if not self.done:
            self.output.error = error
            self.output.finish_reason = None
            self._finish(reason)

    def new_text(self) -> str:
        """Text that no later token can take back, since the last call."""
        text = self.output.text
        end = len(text) if self.finished else len(text) - self._held_back()
        piece = text[self._num_streamed : end]
        self._num_streamed = max(self._num_streamed, end)
        return piece

    def new_piece(self) -> StreamOutput | None:
        """The tokens since the last call and the text that they made final; None if nothing is new.

        The piece that ends the completion comes once.
        """
        output, start = self.output, self._num_streamed_tokens
        end = len(output.token_ids)
        done = self.done
        if (end == start and not done) or self._ended:
            return None
        self._num_streamed_tokens, self._ended = end, done
        return StreamOutput(
            text=self.new_text(),
            token_ids=output.token_ids[start:end],
            logprobs=None if output.logprobs is None else output.logprobs[start:end],
            finish_reason=output.finish_reason if done else None,
            request_id=self.request.request_id,
            index=output.index,
        )

    def metrics(self) -> RequestMetrics:
        metrics = RequestMetrics(
            num_prompt_tokens=self.num_prompt_tokens, num_output_tokens=self.num_output_tokens
        )
        if self.first_token_time is not None and self.last_token_time is not None:
            metrics.time_to_first_token = self.first_token_time - self.start_time
            if self.num_output_tokens > 1:
                decode_time = self.last_token_time - self.first_token_time
                metrics.time_per_output_token = decode_time / (self.num_output_tokens - 1)
        return metrics

    def _add_text(self, piece: str) -> None:
        start = len(self.output.text)
        self.output.text += piece
        if not piece or self.num_output_tokens < self.params.min_tokens:
            return
        # A stop string may begin in the text before.
        matches = []
        for stop in self.params.stop:
            at = self.output.text.find(stop, max(0, start - len(stop) + 1))
            if at >= 0:
                matches.append((at, stop))
        if matches:
            at, stop = min(matches, key=lambda match: match[0])
            self.output.text = self.output.text[:at]
            self.output.stop_reason = stop
            self.output.finish_reason = "stop"

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        text, longest = self.output.text, 0
        for stop in self.params.stop:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _finish(self, reason: str) -> None:
        self._add_text(self._decoder.flush())
        if self.output.finish_reason is None:
            self.output.finish_reason = reason
