# SPDX-License-Identifier: Apache-2.0
"""Sends a load and records the arrival times of all pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lampo.bench.workload import Call


@dataclass
class Record:
    """The record of a call. Times are of time.perf_counter.

    Attributes:
        sent: when it was sent.
        pieces: arrival times of pieces with text or tokens.
        num_output_tokens: as counted by the target.
        error: one line, if it failed.
    """

    num_prompt_tokens: int
    sent: float = 0.0
    ended: float = 0.0
    pieces: list[float] = field(default_factory=list)
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    error: str | None = None

    @property
    def time_to_first_token(self) -> float:
        return self.pieces[0] - self.sent

    @property
    def time_per_output_token(self) -> float | None:
        """The mean after the first token; None with fewer than two."""
        if self.num_output_tokens < 2:
            return None
        return (self.pieces[-1] - self.pieces[0]) / (self.num_output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Times between pieces."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:], strict=False)]


class Target(Protocol):
    """The receiver of calls."""

    async def vocabulary(self) -> list[int]:
        """Token ids for prompts."""
        ...

    async def call(self, call: Call, record: Record) -> None:
        """Generates, and fills the record's pieces and counts. Raises: RuntimeError, OSError."""
        ...


async def run_load(
    target: Target,
    calls: Sequence[Call],
    times: Sequence[float],
    *,
    concurrency: int | None = None,
    on_end: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Sends call i at times[i], or later if `concurrency` calls are under way; waits for all.

    A call's time begins when it is due: it includes the wait for others where arrivals are given,
    unless `concurrency` delays it.
    """
    free = asyncio.Semaphore(concurrency or len(calls))
    begin = time.perf_counter()

    async def one(call: Call, due: float) -> Record:
        record = Record(len(call.prompt))
        await asyncio.sleep(begin + due - time.perf_counter())
        async with free:
            record.sent = time.perf_counter() if concurrency else begin + due
            try:
                await target.call(call, record)
            except (RuntimeError, OSError, ValueError) as error:
                record.error = " ".join(str(error).split()) or type(error).__name__
            record.ended = time.perf_counter()
        if record.error is None and not record.pieces:
            record.error = "no token came"
        on_end(record)
        return record

    tasks = [asyncio.ensure_future(one(c, t)) for c, t in zip(calls, times, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
