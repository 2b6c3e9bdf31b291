# SPDX-License-Identifier: Apache-2.0
"""The engine: continuous batching of requests, one step of the model at a time."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from lampo.engine.kv_pool import KVPool, saved_distance
from lampo.engine.page_allocator import PageAllocator
from lampo.engine.request import Request, Sequence
from lampo.engine.runner import DecodeResult, Runner
from lampo.engine.sampler import Sampler, take_rows
from lampo.engine.scheduler import Plan, Scheduler
from lampo.engine.snapshot import SequenceSnapshot, Snapshot
from lampo.engine.state_slots import StateSlots
from lampo.outputs import StreamOutput

logger = logging.getLogger("lampo")

ABORTED = "the request was aborted"
TIMED_OUT = "the request's time limit was reached"

# Rows of logits held at once while prompt_logprobs are collected.
_LOGITS_ROWS = 64


@dataclass(frozen=True)
class EngineStats:
    """Counts of the engine's work.

    Attributes:
        num_running, num_waiting: completions that hold pages, and that wait for some.
        num_pages, num_free_pages, num_cached_pages: of the KV cache; cached pages are held by
            no sequence and kept for requests that begin with the same tokens.
        num_steps, num_preemptions: since the start, like all below.
        num_prompt_tokens, num_cached_prompt_tokens: of requests, and found in the prefix cache.
        num_output_tokens: generated.
        finished: completions by finish reason.
    """

    num_running: int
    num_waiting: int
    num_pages: int
    num_free_pages: int
    num_cached_pages: int
    num_steps: int
    num_preemptions: int
    num_prompt_tokens: int
    num_cached_prompt_tokens: int
    num_output_tokens: int
    finished: dict[str, int]


@dataclass(frozen=True)
class _InFlight:
    """A decode step that is launched and not yet read; `sequences` are its rows."""

    plan: Plan
    sequences: list[Sequence]
    result: DecodeResult


@dataclass(frozen=True)
class _Rows:
    """Some rows of a `DecodeResult`."""

    logits: torch.Tensor
    token_ids: list[int]
    status: list[int]
    num_kept: list[int] | None


class LLMEngine:
    """Runs requests over one model and one KV pool by continuous batching.

    Not thread-safe: one thread at a time adds, aborts and steps (`lampo.LLM` holds a lock,
    `lampo.AsyncLLM` has a thread for it). A step is planned, its pages reserved, computed, and
    committed. An exception fails the requests of its step, and the engine continues.

    Args:
        runner: computes steps; any object like :class:`lampo.engine.runner.ModelRunner`.
        pool: the pages of its keys and values.
        token_text: the text of a token, for log-probabilities.
        max_num_seqs: completions that run at the same time.
        max_num_batched_tokens: prompt tokens computed in a step.
        prefix_caching: keep the pages of finished requests for others with a common prefix.
        run_ahead: launch a decode step before the tokens of the previous one are read, so that a
            device never waits for the host. The tokens are the same; the step after a sequence's
            last is discarded.

    Attributes:
        pool, runner: as given.
        scheduler: holds the sequences and the pages' bookkeeping.
        sampler: draws tokens and makes tables of log-probabilities.
        num_failed_in_a_row: steps that failed since the last one that did not. A GPU whose context
            is lost fails all.
    """

    def __init__(
        self,
        runner: Runner,
        pool: KVPool,
        token_text: Callable[[int], str],
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_caching: bool = True,
        run_ahead: bool = False,
    ) -> None:
        self.pool = pool
        self.runner = runner
        states = None
        if pool.num_slots:
            prefix_caching = prefix_caching and pool.num_slots > max_num_seqs
            distance = saved_distance(pool.page_size, max_num_batched_tokens)
            states = StateSlots(pool.num_slots, pool.copy_state, distance if prefix_caching else 0)
        self.scheduler = Scheduler(
            PageAllocator(
                pool.num_pages,
                pool.page_size,
                prefix_caching=prefix_caching,
                window=pool.window,
            ),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            states=states,
        )
        self.sampler = Sampler(token_text, pool.device)
        self._requests: dict[str, Request] = {}
        self._timed: dict[str, Request] = {}  # requests with a deadline
        self._updated: dict[Sequence, None] = {}  # sequences with new output
        self._run_ahead = run_ahead
        self._in_flight: _InFlight | None = None
        self._pending: list[Plan] = []  # not committed, oldest first
        self._num_steps = self._num_prompt_tokens = self._num_output_tokens = 0
        self._num_cached_prompt_tokens = 0
        self._finished: Counter[str] = Counter()
        self.num_failed_in_a_row = 0
        self._idle()

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    def add(self, request: Request) -> None:
        """Queues a request that `lampo.LLM.request` made, checked and resolved.

        Raises:
            ValueError: its name is in use by an unfinished request, it has ended, or its prompt
                is empty.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request_id: {request.request_id!r} is in use")
        if request.num_unfinished == 0:
            raise ValueError(f"request: {request.request_id!r} has ended; make a new one")
        if not request.prompt_token_ids:
            raise ValueError(f"request: {request.request_id!r} has an empty prompt")
        self._requests[request.request_id] = request
        if request.deadline < math.inf:
            self._timed[request.request_id] = request
        self._updated.update(dict.fromkeys(s for s in request.sequences if s.done))
        if not request.sequences[0].done:
            self.scheduler.add(request.sequences[0])

    def abort(self, request_id: str) -> list[StreamOutput]:
        """Ends a request and frees its pages. Unknown names are ignored.

        Returns:
            as :meth:`step`: its last pieces.
        """
        request = self._requests.get(request_id)
        if request is not None:
            self._fail(request.sequences, ABORTED, "abort")
        return self._hand_out()

    def step(self) -> list[StreamOutput]:
        """Computes one step: a token per decoding completion, and chunks of prompts.

        Returns:
            the new pieces of all completions that have any. The last piece of a request has its
            whole result.
        """
        self.pool.busy()
        if self._timed:
            self._end_overdue()
        self._attempt(self._advance)
        pieces = self._hand_out()
        if not self._requests:
            self._idle()
        return pieces

    def settle(self) -> None:
        """Reads the results of the step in flight; the next :meth:`step` returns their pieces.

        Until then the runner may be used for other sequences.
        """
        self.pool.busy()
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            self._attempt(lambda: self._complete(in_flight))

    def _attempt(self, work: Callable[[], None]) -> None:
        """Does a part of a step; if it fails, the requests of the step fail."""
        try:
            work()
            self.num_failed_in_a_row = 0
        except BaseException as error:
            all_sequences = [s for r in self._requests.values() for s in r.sequences]
            in_step = [s for plan in self._pending[-1:] for s in plan.work]
            for plan in reversed(self._pending or [Plan()]):
                self.scheduler.roll_back(plan, all_sequences)
            self._pending.clear()
            self._in_flight = None
            if not isinstance(error, Exception):  # an interruption fails no request
                raise
            self.num_failed_in_a_row += 1
            logger.exception("a step failed; sequences in it: %d", len(in_step))
            self._fail(in_step or all_sequences, _internal_error(error), "error")

    def stats(self) -> EngineStats:
        allocator = self.scheduler.allocator
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            num_pages=allocator.num_pages,
            num_free_pages=allocator.num_free,
            num_cached_pages=allocator.num_cached,
            num_steps=self._num_steps,
            num_preemptions=self.scheduler.num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_prompt_tokens=self._num_cached_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            finished=dict(self._finished),
        )

    def snapshot(self) -> Snapshot:
        """The state between two steps, for :func:`lampo.engine.snapshot.violations`."""
        free, cached, known, ref_counts = self.scheduler.allocator.books()
        waiting = set(self.scheduler.waiting)
        states = self.scheduler.states
        free_slots, saved_slots = ((), ()) if states is None else states.books()

        def state(sequence: Sequence) -> str:
            if sequence in self.scheduler.running:
                return "running"
            return "waiting" if sequence in waiting else "not started"

        return Snapshot(
            num_pages=self.pool.num_pages,
            page_size=self.pool.page_size,
            free=free,
            cached=cached,
            known=known,
            ref_counts=ref_counts,
            max_num_seqs=self.scheduler.max_num_seqs,
            window=self.pool.window,
            num_slots=self.pool.num_slots,
            free_slots=free_slots,
            saved_slots=saved_slots,
            sequences=tuple(
                SequenceSnapshot(
                    request_id=request.request_id,
                    index=i,
                    state=state(sequence),
                    done=sequence.done,
                    num_tokens=len(sequence.token_ids),
                    num_computed=sequence.num_computed,
                    num_in_flight=sum(sequence in plan.work for plan in self._pending),
                    pages=tuple(sequence.pages),
                    state_slot=sequence.state_slot,
                )
                for request in self._requests.values()
                for i, sequence in enumerate(request.sequences)
            ),
        )

    def _idle(self) -> None:
        self.pool.idle(self.scheduler.allocator.num_ever_used)

    def _advance(self) -> None:
        """Launches the next step, and reads the results of the one in flight."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            if plan := self._plan_ahead(in_flight.sequences):
                self._pending.append(plan)
                self._num_steps += 1
                result = self.runner.decode(in_flight.sequences, after=in_flight.result)
                self._in_flight = _InFlight(plan, in_flight.sequences, result)
            self._complete(in_flight)
        if self._in_flight is None:
            for sequence in self._updated:
                if sequence.done:
                    self.scheduler.remove(sequence)
            plan = self.scheduler.plan()
            if plan.work:
                self._pending.append(plan)
                self._num_steps += 1
                self._compute(plan)

    def _compute(self, plan: Plan) -> None:
        for source, target in plan.copies:
            self.pool.copy_page(source, target)
        sequences = list(plan.work)
        if all(s.num_pending == 1 for s in sequences):
            result = self.runner.decode(sequences)
            if self._run_ahead and not plan.copies:  # a pending plan must hold no pages of its own
                self._in_flight = _InFlight(plan, sequences, result)
            else:
                self._accept(plan, sequences, result)
        else:
            self._compute_prompts(plan, sequences)
            self._updated.update(dict.fromkeys(sequences))

    def _plan_ahead(self, sequences: list[Sequence]) -> Plan | None:
        """The step after the one in flight; None if it depends on that one's tokens.

        A sequence that ends in the step in flight frees its pages while the device may still write
        the next token's key and value there. This is sound: the device runs the next user of those
        pages later, and the position is after all tokens in the prefix cache.
        """
        scheduler = self.scheduler
        admits = scheduler.waiting and len(scheduler.running) < scheduler.max_num_seqs
        if admits or len(scheduler.running) != len(sequences):
            return None
        for s in sequences:
            if s.done or s.needs_own_draw or s.output.logprobs is not None:
                return None
            if not s.request.prompt_computed or len(s.token_ids) + 1 >= s.max_len:
                return None
        return scheduler.plan_ahead(sequences)

    def _complete(self, step: _InFlight) -> None:
        """Reads the results of a step; rows of ended sequences are discarded."""
        rows = [i for i, s in enumerate(step.sequences) if not s.done]
        result = step.result
        if len(rows) == len(step.sequences):
            self._accept(step.plan, step.sequences, result)
        elif rows:
            token_ids, status = result.token_ids, result.status
            chosen = _Rows(
                take_rows(result.logits, rows),
                [token_ids[i] for i in rows],
                [status[i] for i in rows],
                None if result.num_kept is None else [result.num_kept[i] for i in rows],
            )
            self._accept(step.plan, [step.sequences[i] for i in rows], chosen)
        else:
            self._commit(step.plan)

    def _accept(self, plan: Plan, sequences: list[Sequence], result: DecodeResult) -> None:
        """Appends a decode step's tokens."""
        token_ids, status = result.token_ids, result.status  # the read may wait, or fail
        self._commit(plan)
        self.sampler.accept(result.logits, sequences, token_ids, status, result.num_kept)
        self._fork(sequences, result.logits)
        self._updated.update(dict.fromkeys(sequences))

    def _commit(self, plan: Plan) -> None:
        self.scheduler.commit(plan)
        self._pending.remove(plan)

    def _compute_prompts(self, plan: Plan, sequences: list[Sequence]) -> None:
        work, starts = list(plan.work.items()), [s.num_computed for s in sequences]
        ends = list(itertools.accumulate(plan.work.values()))
        complete = [
            i for i, (s, count) in enumerate(work) if count == s.num_pending and not s.finished
        ]
        if all(s.prompt_logprobs is None for s in sequences):
            hidden = self.runner.run(work, last_of=complete)
            self._commit(plan)
        else:
            hidden = self.runner.run(work)
            self._commit(plan)
            for sequence, start, end in zip(sequences, starts, ends, strict=True):
                if sequence.prompt_logprobs is not None:
                    self._score_prompt(sequence, start, hidden[end - plan.work[sequence] : end])
            rows = [ends[i] - 1 for i in complete]
            hidden = hidden[torch.tensor(rows, dtype=torch.int64, device=hidden.device)]
        if complete:
            ready, logits = [sequences[i] for i in complete], self.runner.logits(hidden)
            self.sampler.sample(logits, ready)
            self._fork(ready, logits)

    def _fork(self, ready: list[Sequence], logits: torch.Tensor) -> None:
        """Starts the other completions of requests with a prompt computed in this step."""
        parents: list[int] = []
        children: list[Sequence] = []
        for row, sequence in enumerate(ready):
            request = sequence.request
            if request.prompt_computed:
                continue
            request.prompt_computed = True
            self._num_prompt_tokens += sequence.num_prompt_tokens
            self._num_cached_prompt_tokens += request.num_cached_tokens
            for child in request.sequences[1:]:
                if not child.done and self.scheduler.fork(sequence, child):
                    parents.append(row)
                    children.append(child)
        if children:
            self.sampler.sample(take_rows(logits, parents), children)
            self._updated.update(dict.fromkeys(children))

    def _score_prompt(self, sequence: Sequence, start: int, hidden: torch.Tensor) -> None:
        """Adds tables of the prompt tokens predicted at positions start, start + 1, ..."""
        assert sequence.prompt_logprobs is not None and sequence.prompt_num_kept is not None
        num_top = sequence.params.prompt_logprobs or 0
        # A recomputed sequence has some already, and maybe output after its prompt.
        done = max(len(sequence.prompt_logprobs) - (start + 1), 0)
        end = min(start + 1 + len(hidden), sequence.num_prompt_tokens)
        targets = sequence.token_ids[start + 1 : end]
        rows = min(_LOGITS_ROWS, self.scheduler.max_num_seqs)
        for first in range(done, len(targets), rows):
            wanted = targets[first : first + rows]
            logits = self.runner.logits(hidden[first : first + len(wanted)])
            sequence.prompt_logprobs += self.sampler.tables(logits, wanted, num_top)
            if sequence.rules.changes_logits or sequence.params.min_tokens:
                sequence.prompt_num_kept += [None] * len(wanted)
            else:
                sequence.prompt_num_kept += self.sampler.num_kept(logits, [sequence] * len(logits))

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for request in self._timed.values():
            if now >= request.deadline:
                self._fail(request.sequences, TIMED_OUT, "abort")

    def _fail(self, sequences: Iterable[Sequence], why: str, reason: str) -> None:
        """Fails the requests of these sequences."""
        for request in dict.fromkeys(s.request for s in sequences):
            for sequence in request.sequences:
                if not sequence.done:
                    sequence.fail(why, reason)
                    self.scheduler.remove(sequence)
                    self._updated[sequence] = None

    def _hand_out(self) -> list[StreamOutput]:
        pieces: list[StreamOutput] = []
        for sequence in self._updated:
            piece = sequence.new_piece()
            if piece is None:
                continue
            self._num_output_tokens += len(piece.token_ids)
            if sequence.done:
                self.scheduler.remove(sequence)
                self._finished[str(sequence.output.finish_reason)] += 1
                request = sequence.request
                request.num_unfinished -= 1
                if request.num_unfinished == 0:
                    del self._requests[request.request_id]
                    self._timed.pop(request.request_id, None)
                    piece.request = request.result(
                        self.scheduler.allocator, self.pool.bytes_per_page
                    )
            pieces.append(piece)
        self._updated.clear()
        return pieces


def _internal_error(error: Exception) -> str:
    """The error of a request: the exception's type, not its text, which may expose internals."""
    return f"internal error ({type(error).__name__})"
