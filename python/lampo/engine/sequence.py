# SPDX-License-Identifier: Apache-2.0
"""One completion while it is being generated."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lampo.engine.sampling_rules import PenaltyCounts, SamplingRules
from lampo.outputs import CompletionOutput, LogprobTable, RequestMetrics, StreamOutput
from lampo.sampling_params import SamplingParams
from lampo.text.detokenizer import StreamDecoder

if TYPE_CHECKING:
    from lampo.engine.page_allocator import PrefixChain
    from lampo.engine.request import Request
    from lampo.text.tokenizer import Tokenizer


class Sequence:
    """Tokens, pages and text of one completion, and the rules that end it.

    Attributes:
        token_ids: prompt and output.
        num_computed: tokens whose keys and values are in the cache.
        pages: pages held, in order of position, FREED for those behind all windows; replaced,
            never edited.
        state_slot: its place among the states; None: it has none.
        chain: the keys of its pages, for the prefix cache.
        request: to which it belongs.
        order: who comes first, among sequences of all requests.
        params: resolved sampling parameters.
        rules: what they mean to the sampler, shared by the request's completions.
        seed: of this completion.
        max_len: length of prompt and output at which it ends.
        penalties: the counts that penalties need; None without them.
        grammar: where it stands in the structure that it has to have; None without one.
        stop_tokens_banned: whether min_tokens keeps stop tokens from being drawn.
        changes_logits: whether its tokens are not simply drawn by temperature and cuts: penalties,
            biases, masks or banned tokens come first, or processed log-probabilities are wanted.
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
        rules: SamplingRules,
    ) -> None:
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_computed = 0
        self.pages: list[int] = []
        self.state_slot: int | None = None
        self.chain: PrefixChain
        self.request: Request
        self.order: tuple[float, int, int]
        self.params = params
        self.seed = seed
        self.rules = rules
        self.penalties = PenaltyCounts(self.rules) if self.rules.has_penalties else None
        self.grammar = None if self.rules.grammar is None else self.rules.grammar.fork()
        self.stop_tokens_banned = params.min_tokens > 0
        self.changes_logits = self.rules.changes_logits or self.stop_tokens_banned
        assert params.max_tokens is not None
        self.max_len = min(max_len, self.num_prompt_tokens + params.max_tokens)
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
        self._stop_state = 0  # of rules.stops
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

    def append(
        self, token_id: int, logprobs: LogprobTable | None = None, now: float | None = None
    ) -> None:
        """Takes a sampled token: extends the text and applies the stop rules.

        Args:
            token_id: the token.
            logprobs: its table, where asked for.
            now: time.perf_counter(), of the step.
        """
        self.last_token_time = time.perf_counter() if now is None else now
        if self.first_token_time is None:
            self.first_token_time = self.last_token_time
        output, rules = self.output, self.rules
        self.token_ids.append(token_id)
        output.token_ids.append(token_id)
        if logprobs is not None and output.logprobs is not None:
            output.logprobs.append(logprobs)
        if self.penalties is not None:
            self.penalties.add(token_id)
        if token_id in rules.stop_ids and not self.stop_tokens_banned:
            output.stop_reason = None if token_id in rules.eos_ids else token_id
            self._finish("stop")
            return
        if self.stop_tokens_banned and len(output.token_ids) >= self.params.min_tokens:
            self.stop_tokens_banned = False
            self.changes_logits = rules.changes_logits
        if self.grammar is not None and (error := self.grammar.accept(token_id)):
            self.fail(error)
            return
        if piece := self._decoder.push(token_id):
            self._add_text(piece)
        if output.finish_reason is None:
            if self.grammar is not None and self.grammar.complete:
                self._finish("stop")
            elif len(self.token_ids) >= self.max_len:
                self._finish("length")

    def fail(self, error: str, reason: str = "error") -> None:
        """Ends it early: "error", or "abort" for a request that was given up."""
        if not self.done:
            self.output.error = error
            self.output.text += self._decoder.flush()
            self.output.finish_reason = reason

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
        output, stops = self.output, self.rules.stops
        output.text += piece
        if stops is None:
            return
        self._stop_state, stop, read = stops.advance(
            self._stop_state, piece, ignore_matches=self.stop_tokens_banned
        )
        if stop is None:
            return
        end = len(output.text) - len(piece) + read
        if not self.params.include_stop_str_in_output:
            end -= len(stop)
        output.text = output.text[:end]
        output.stop_reason = stop
        output.finish_reason = "stop"

    def _held_back(self) -> int:
        """Characters at the end of the text that may begin a stop string."""
        stops = self.rules.stops
        return 0 if stops is None else stops.held_back[self._stop_state]

    def _finish(self, reason: str) -> None:
        self._add_text(self._decoder.flush())
        if self.output.finish_reason is None:
            self.output.finish_reason = reason
