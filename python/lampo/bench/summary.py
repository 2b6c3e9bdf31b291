# SPDX-License-Identifier: Apache-2.0
"""The measurements of a load, summarized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lampo.bench.load import Record

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles of times, in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None if there are no values."""
        if not values:
            return None
        p50, p90, p99 = (percentile(values, p) for p in PERCENTILES)
        return cls(math.fsum(values) / len(values), p50, p90, p99, len(values))


@dataclass(frozen=True)
class Summary:
    """Results of the answered calls, but for num_failed and errors.

    Attributes:
        duration: from the first call to the last answer's end.
        time_to_first_token, time_per_output_token, request_latency: one value per call.
        inter_token_latency: one value per piece after the first; a piece is mostly a token.
    """

    num_requests: int
    num_failed: int
    errors: list[str]
    duration: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    time_to_first_token: Spread | None
    time_per_output_token: Spread | None
    inter_token_latency: Spread | None
    request_latency: Spread | None

    @property
    def requests_per_second(self) -> float:
        return self._rate(self.num_requests)

    @property
    def output_tokens_per_second(self) -> float:
        return self._rate(self.num_output_tokens)

    @property
    def total_tokens_per_second(self) -> float:
        return self._rate(self.num_prompt_tokens + self.num_output_tokens)

    def _rate(self, count: int) -> float:
        return count / self.duration if self.duration > 0 else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile, linearly interpolated between the two nearest values."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summarize(records: Sequence[Record]) -> Summary:
    done = [r for r in records if r.error is None]
    failed = [r.error for r in records if r.error is not None]
    per_token = [r.time_per_output_token for r in done]
    return Summary(
        num_requests=len(done),
        num_failed=len(failed),
        errors=list(dict.fromkeys(failed))[:5],
        duration=max(r.ended for r in done) - min(r.sent for r in done) if done else 0.0,
        num_prompt_tokens=sum(r.num_prompt_tokens for r in done),
        num_cached_tokens=sum(r.num_cached_tokens for r in done),
        num_output_tokens=sum(r.num_output_tokens for r in done),
        time_to_first_token=Spread.of([r.time_to_first_token for r in done]),
        time_per_output_token=Spread.of([t for t in per_token if t is not None]),
        inter_token_latency=Spread.of([gap for r in done for gap in r.gaps]),
        request_latency=Spread.of([r.ended - r.sent for r in done]),
    )
