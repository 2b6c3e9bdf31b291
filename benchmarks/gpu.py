# SPDX-License-Identifier: Apache-2.0
"""Common code of the GPU benchmarks: cold buffers, the clock, device limits, failing peers.

Everything also runs on the CPU, to try the scripts without a GPU; times are meaningless there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

import results
from lampo.bench import cost, timing
from lampo.runtime.device import resolve_device

T = TypeVar("T")
Call = Callable[[], Any]

KERNELS_SHOWN = 30
COVER_CACHES = 3  # times the L2 cache: bytes of other buffers between uses of one


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of all benchmarks, and the device."""
    options = results.parser(description)
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--few", action="store_true", help="the most telling cases alone")
    return options


class Device:
    """The device of a benchmark, and the timing of calls there.

    On a GPU a contestant's calls are captured in a CUDA graph, each on the next of its buffers, and
    the graph's replays are timed by events: the device's time, without the host's. Calls that
    cannot be captured are timed eagerly, with a note.
    """

    def __init__(self, options: argparse.Namespace, report: results.Report) -> None:
        self.torch = resolve_device(options.device)
        self.on_gpu = self.torch.type == "cuda"
        self.repeats: int = options.repeats
        self.report = report
        self.failed = 0
        self._complained: set[str] = set()
        l2 = torch.cuda.get_device_properties(self.torch).L2_cache_size if self.on_gpu else 0
        self.cover = COVER_CACHES * l2

    def rotating(self, make: Callable[[], T], nbytes: int, *, warm: bool = False) -> list[T]:
        """Sets of buffers that together exceed the L2 cache; warm: one, which may stay in it."""
        return timing.Rotating(make, nbytes, cover=self.cover, limit=1 if warm else 4096).sets

    def seconds(
        self, contestants: Mapping[str, list[Call]], main: str = "lampo"
    ) -> dict[str, timing.Series]:
        """Seconds per call of each contestant, in turns; a call per buffer.

        A contestant that fails, other than `main`, is left out with a note.
        """
        rounds: dict[str, Call] = {}
        for name, calls in contestants.items():
            repeated = self._repeated(name, calls)
            if repeated is not None:
                rounds[name] = repeated
            elif name == main:
                raise RuntimeError(f"{main} failed")
        times = timing.interleave(
            rounds, repeats=self.repeats, settle_s=0, device=self.torch.type, min_sample_s=1e-3
        )
        return {
            name: timing.Series(tuple(s / len(contestants[name]) for s in series.values))
            for name, series in times.items()
        }

    def kernels(self, calls: list[Call]) -> list[dict[str, Any]] | None:
        """The kernels of some calls, the longest first, with their number and microseconds per
        call. None on the CPU."""
        if not self.on_gpu:
            return None
        from torch.profiler import ProfilerActivity, profile

        def profiled() -> list[dict[str, Any]]:
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                for call in calls:
                    call()
                torch.cuda.synchronize(self.torch)
            events = sorted(profiler.key_averages(), key=lambda e: -e.device_time_total)
            return [
                {
                    "kernel": event.key[:160],
                    "count": event.count / len(calls),
                    "us": event.device_time_total / len(calls),
                }
                for event in events[:KERNELS_SHOWN]
                if event.device_time_total > 0
            ]

        return self.attempt("the profile", profiled)

    def attempt(self, name: str, make: Callable[[], T]) -> T | None:
        """make(), or None and a note: a peer that is absent or refuses is left out."""
        try:
            return make()
        except Exception as error:
            self.complain(f"{name} is left out", error)
            return None

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Turns the failure of a case into a note; the next case follows."""
        try:
            yield
        except Exception as error:
            self.failed += 1
            self.complain(f"{name}: no result", error)

    def exit(self) -> None:
        """Ends the program, with status 1 if a case failed."""
        sys.exit(f"{self.failed} cases failed, see the notes" if self.failed else 0)

    def complain(self, what: str, error: Exception) -> None:
        """Adds a note, once per cause."""
        cause = error.__cause__ or error
        first_line = str(cause).strip().split("\n")[0]
        sentence = f"{what}: {type(cause).__name__}: {first_line[:200]}"
        if sentence not in self._complained:
            self._complained.add(sentence)
            self.report.note(sentence)

    def copy_rate(self) -> float:
        """Bytes per second, read plus written, of a large copy on the device; noted as a limit."""
        count = (1 << 30) if self.on_gpu else (1 << 24)
        source, target = (
            torch.randint(256, (count,), dtype=torch.uint8, device=self.torch) for _ in range(2)
        )
        seconds = self._measure(lambda: target.copy_(source))
        rate = timing.Series(tuple(2 * count / s for s in seconds.values))
        self.report.limit("copy on the device, bytes/s read plus written", rate)
        return rate.median

    def matmul_rate(self) -> float:
        """Operations per second of torch's product of random bfloat16 matrices, noted likewise."""
        size = 8192 if self.on_gpu else 256
        a, b = (torch.randn(size, size, device=self.torch).bfloat16() for _ in range(2))
        seconds = self._measure(lambda: torch.mm(a, b))
        rate = timing.Series(tuple(2 * size**3 / s for s in seconds.values))
        self.report.limit(f"torch bf16 product of {size}^3, operations/s", rate)
        return rate.median

    def _measure(self, call: Call) -> timing.Series:
        """Times a call of a millisecond, after a warm-up in which an idle GPU raises its clocks."""
        warmup = 50 if self.on_gpu else 1
        return timing.measure(call, repeats=9, warmup=warmup, device=self.torch.type)

    def _repeated(self, name: str, calls: list[Call]) -> Call | None:
        """All the calls as one; None if they fail."""

        def one_after_the_other() -> None:
            for call in calls:
                call()

        def tried() -> Call:
            one_after_the_other()
            return one_after_the_other

        if self.on_gpu:
            try:
                return timing.cuda_graph(one_after_the_other)
            except Exception as error:
                self.complain(f"{name} is timed with its launches, as it was not captured", error)
        return self.attempt(name, tried)


def compared(
    times: Mapping[str, timing.Series], price: cost.Cost, copy_rate: float
) -> dict[str, float]:
    """The columns of a memory-bound case: lampo's time, its share of the copy rate, the peers'."""
    seconds = times["lampo"].median
    columns = {
        "us": seconds * 1e6,
        "GB/s": price.gb_per_s(seconds),
        "% of copy": 100 * price.nbytes / seconds / copy_rate,
    }
    for name in set(times) - {"lampo"}:
        columns[f"{name} us"] = times[name].us
        columns[f"x {name}"] = timing.pair_ratio(times[name], times["lampo"]).median
    return columns


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|; infinite if any value is not a number."""
    found, expected = found.double(), expected.double()
    error = float((found - expected).norm() / expected.norm())
    return error if error == error else float("inf")
