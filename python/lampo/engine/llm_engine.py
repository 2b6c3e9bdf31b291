# SPDX-License-Identifier: Apache-2.0
"""The loop: prefill the prompts in chunks, then decode all sequences together, step by step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import torch

from lampo.engine.kv_pool import KVPool
from lampo.engine.runner import ModelRunner
from lampo.engine.sampler import Sampler
from lampo.engine.sequence import Sequence
from lampo.models.decoder import Decoder
from lampo.outputs import RequestOutput
from lampo.program import OpTiming
from lampo.tokenizer import Tokenizer

# Rows of logits held at once while prompt_logprobs are collected.
_LOGITS_ROWS = 64


class LLMEngine:
    """Runs sequences over one model and one KV pool, in static batches.

    A batch holds as many sequences as the pool has pages for at their greatest length; the others
    wait for the next. Each step holds a lock: several threads may iterate over runs of their own.
    """

    def __init__(
        self,
        model: Decoder,
        pool: KVPool,
        tokenizer: Tokenizer,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self._model = model
        self._runner = ModelRunner(model, pool, pool.pages_for(model.max_model_len))
        self._sampler = Sampler(tokenizer.token_to_text)
        self._lock = threading.Lock()

    def run(self, sequences: list[Sequence]) -> Iterator[list[Sequence]]:
        """Generates until every sequence has finished.

        Yields:
            after each step, the sequences that got a token: none while prompts are computed.
        """
        waiting = deque(s for s in sequences if not s.finished or s.prompt_logprobs is not None)
        while waiting:
            batch = self._next_batch(waiting)
            try:
                yield from self._prefill(batch)
                running = [s for s in batch if not s.finished]
                while running:
                    with self._lock:
                        self._decode(running)
                    yield running
                    running = [s for s in running if not s.finished]
            finally:
                with self._lock:
                    for sequence in batch:
                        self.pool.free(sequence.pages)
                        sequence.pages = []

    def _decode(self, sequences: list[Sequence]) -> None:
        step = self._runner.decode(sequences)
        self._sampler.accept(step.logits, sequences, step.token_ids, step.status)

    def replay_decode(self, batch_size: int, repeats: int) -> list[list[OpTiming]]:
        """Replays the last decode step of so many sequences with a clock, for `lampo.profile`.

        Raises:
            ValueError: so many have not been decoded together.
        """
        with self._lock:
            program = self._runner.decode_step(batch_size).program
            if not len(program):
                raise ValueError(
                    f"batch_size: the KV cache cannot hold {batch_size} sequences of this depth"
                )
            return [program.profile() for _ in range(repeats)]

    def request_output(self, prompt: str | None, group: list[Sequence]) -> RequestOutput:
        """The result of one prompt from its completions."""
        first = group[0]
        metrics = first.metrics()
        metrics.num_output_tokens = sum(s.num_output_tokens for s in group)
        pages = sum(self.pool.pages_for(s.num_computed) for s in group)
        metrics.cache_bytes = pages * self.pool.bytes_per_page
        return RequestOutput(
            prompt=prompt,
            prompt_token_ids=first.token_ids[: first.num_prompt_tokens],
            prompt_logprobs=first.prompt_logprobs,
            outputs=[s.output for s in group],
            metrics=metrics,
        )

    def _next_batch(self, waiting: deque[Sequence]) -> list[Sequence]:
        batch: list[Sequence] = []
        with self._lock:
            while waiting and len(batch) < self.max_num_seqs:
                pages = self.pool.pages_for(max(waiting[0].max_len, waiting[0].num_prompt_tokens))
                if pages > self.pool.num_free:
                    break
                sequence = waiting.popleft()
                sequence.pages = self.pool.allocate(pages)
                batch.append(sequence)
        if not batch:
            raise MemoryError(
                f"KV cache: a sequence of up to {waiting[0].max_len} tokens does not fit into "
                f"{self.pool.num_free * self.pool.page_size} free slots"
            )
        return batch

    def _prefill(self, batch: list[Sequence]) -> Iterator[list[Sequence]]:
        """Computes all prompts, up to max_num_batched_tokens a step, and samples first tokens."""
        pending = deque(batch)
        while pending:
            work: list[tuple[Sequence, int]] = []
            budget = self.max_num_batched_tokens
            while pending and budget > 0:
                sequence = pending[0]
                count = min(budget, sequence.num_prompt_tokens - sequence.num_computed)
                work.append((sequence, count))
                budget -= count
                if sequence.num_computed + count < sequence.num_prompt_tokens:
                    break
                pending.popleft()
            with self._lock:
                ready = self._prefill_step(work)
            yield ready

    def _prefill_step(self, work: list[tuple[Sequence, int]]) -> list[Sequence]:
        starts = [sequence.num_computed for sequence, _ in work]
        hidden = self._runner.run(work)
        ready: list[Sequence] = []
        last_rows: list[int] = []
        at = 0
        for (sequence, count), start in zip(work, starts, strict=True):
            if sequence.prompt_logprobs is not None:
                self._score_prompt(sequence, start, hidden[at : at + count])
            at += count
            if sequence.num_computed == sequence.num_prompt_tokens and not sequence.finished:
                ready.append(sequence)
                last_rows.append(at - 1)
        if ready:
            logits = self._model.logits(hidden[torch.tensor(last_rows)])
            self._sampler.sample(logits, ready)
        return ready

    def _score_prompt(self, sequence: Sequence, start: int, hidden: torch.Tensor) -> None:
        """Tables for the prompt tokens that positions start, start + 1, ... predict."""
        assert sequence.prompt_logprobs is not None
        num_top = sequence.params.prompt_logprobs or 0
        end = min(start + 1 + len(hidden), sequence.num_prompt_tokens)
        targets = sequence.token_ids[start + 1 : end]
        for first in range(0, len(targets), _LOGITS_ROWS):
            wanted = targets[first : first + _LOGITS_ROWS]
            logits = self._model.logits(hidden[first : first + len(wanted)])
            sequence.prompt_logprobs += self._sampler.tables(logits, wanted, num_top)
