# SPDX-License-Identifier: Apache-2.0
"""Clocks of the benchmarks: repeated samples, fair side-by-side runs, cold buffers.

The machine may be shared, so no function reports a single time or a mean: a `Series` keeps every
sample and shows the median and the quartiles. `interleave` compares contestants in turns, and
`pair_ratio` divides their times pair by pair.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Function = Callable[[], Any]

CACHE_TO_COVER = 128 << 20  # bytes; larger than the last-level cache of known machines
LEAD_IN_BELOW_S = 0.05  # contestants slower than this need no untimed call before each sample


@dataclass(frozen=True)
class Series:
    """Samples of one quantity (seconds per call, or a ratio), in the order they were taken."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def q1(self) -> float:
        return self._quartile(0)

    @property
    def q3(self) -> float:
        return self._quartile(2)

    @property
    def spread(self) -> float:
        """Distance between the quartiles over the median: the noise of the run, 0.05 is quiet."""
        return (self.q3 - self.q1) / self.median

    @property
    def us(self) -> float:
        return self.median * 1e6

    def _quartile(self, index: int) -> float:
        if len(self.values) < 2:
            return self.values[0]
        return statistics.quantiles(self.values, n=4, method="inclusive")[index]

    def summary(self, scale: float = 1.0) -> dict[str, float]:
        """Median, quartiles and count for a JSON file, each value times `scale`."""
        return {
            "median": self.median * scale,
            "q1": self.q1 * scale,
            "q3": self.q3 * scale,
            "count": len(self.values),
        }


def sample(fn: Function, inner: int = 1, device: str = "cpu") -> float:
    """Seconds per call over `inner` calls in a row: wall clock on the CPU, events on CUDA."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(inner):
            fn()
        return (time.perf_counter() - start) / inner
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(inner):
        fn()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / inner


def calls_per_sample(fn: Function, min_sample_s: float, device: str = "cpu") -> int:
    """Number of calls, a power of two, for a sample of `min_sample_s`."""
    inner = 1
    while inner < 1 << 20 and sample(fn, inner, device) * inner < min_sample_s:
        inner *= 2
    return inner


def measure(
    fn: Function,
    *,
    repeats: int = 30,
    warmup: int = 3,
    min_sample_s: float = 2e-4,
    inner: int | None = None,
    device: str = "cpu",
) -> Series:
    """Seconds per call of `fn()`, `repeats` samples after `warmup` untimed calls.

    inner: calls per sample; by default enough for a sample of `min_sample_s`.
    device: "cpu" (wall clock) or "cuda" (events on the current stream).
    For a cold cache let `fn` take its buffers from a `Rotating`.
    """
    for _ in range(warmup):
        fn()
    inner = inner or calls_per_sample(fn, min_sample_s, device)
    return Series(tuple(sample(fn, inner, device) for _ in range(repeats)))


def interleave(
    contestants: Mapping[str, Function],
    *,
    repeats: int = 20,
    warmup: int = 3,
    min_sample_s: float = 2e-4,
    settle_s: float = 0.02,
    device: str = "cpu",
) -> dict[str, Series]:
    """Times several functions in turns: A B, B A, A B ...; samples i of all are comparable.

    A turn begins with a pause of `settle_s`, in which the previous function's worker threads stop
    spinning (torch's spin for more than 5 ms), and with one untimed call. Compare the results by
    `pair_ratio`.
    """
    inner = {}
    for name, fn in contestants.items():
        for _ in range(warmup):
            fn()
        inner[name] = calls_per_sample(fn, min_sample_s, device)
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats):
        order = list(contestants) if turn % 2 == 0 else list(contestants)[::-1]
        for name in order:
            fn = contestants[name]
            time.sleep(settle_s)
            if not values[name] or values[name][-1] < LEAD_IN_BELOW_S:
                fn()
            values[name].append(sample(fn, inner[name], device))
    return {name: Series(tuple(times)) for name, times in values.items()}


def take_turns(
    contestants: Mapping[str, Callable[[int], float]], *, repeats: int, settle_s: float = 0.1
) -> dict[str, Series]:
    """As :func:`interleave`, for contestants that take the time themselves.

    Each is called with the number of the turn and returns seconds. The first turn, 0, is a warm-up
    and left out.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        order = list(contestants) if turn % 2 == 0 else list(contestants)[::-1]
        for name in order:
            time.sleep(settle_s)
            seconds = contestants[name](turn)
            if turn:
                values[name].append(seconds)
    return {name: Series(tuple(times)) for name, times in values.items()}


def pair_ratio(numerator: Series, denominator: Series) -> Series:
    """Ratio of two interleaved series, pair by pair; `pair_ratio(peer, ours)` is our speed-up."""
    pairs = zip(numerator.values, denominator.values, strict=True)
    return Series(tuple(a / b for a, b in pairs))


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


class Rotating(Generic[T]):
    """Copies of the buffers of a call, in rotation, so that every call finds them uncached.

    make: builds one set of buffers. nbytes: size of a set. cover: the sets together exceed this
    many bytes. limit: at most this many sets; tiny ones may then stay cached, as in a real step.

    >>> weights = Rotating(lambda: torch.randn(576, 576), 4 * 576 * 576)
    >>> measure(lambda: torch.mv(weights(), x))
    """

    def __init__(
        self,
        make: Callable[[], T],
        nbytes: int,
        *,
        cover: int = CACHE_TO_COVER,
        limit: int = 1024,
    ) -> None:
        count = min(max(2, -(-cover // max(nbytes, 1)) + 1), limit)
        self.sets = [make() for _ in range(count)]
        self._next = 0

    def __call__(self) -> T:
        self._next = (self._next + 1) % len(self.sets)
        return self.sets[self._next]


def cuda_graph(fn: Function, calls: int = 1) -> Function:
    """Captures `calls` calls of `fn` in a CUDA graph; its replay has no launch cost of Python."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fn()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            fn()
    return graph.replay
