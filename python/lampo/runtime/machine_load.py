# SPDX-License-Identifier: Apache-2.0
"""How busy a machine is while something is measured on it, from Linux's /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

# Above these a measurement is not the machine's: cores taken by others, and time spent waiting.
_BUSY_SHARE = 0.1
_BUSY_WAIT = 0.05


@dataclass(frozen=True)
class MachineLoad:
    """The use of a machine's cores over some time.

    Attributes:
        cores: logical CPUs of the machine.
        others: CPUs taken on average by other processes, but for ended children of this one, and by
            the host of a virtual machine.
        waited: share of the time in which this process' threads could have run, but got no CPU;
            0 where the kernel does not say.
    """

    cores: int
    others: float
    waited: float

    @property
    def busy(self) -> bool:
        """Whether times measured meanwhile are worse than the machine's."""
        return self.others > _BUSY_SHARE * self.cores or self.waited > _BUSY_WAIT

    def describe(self) -> str:
        text = f"other processes took {self.others:.1f} of {self.cores} CPUs"
        return f"{text}; threads were ready, but not running, {self.waited:.0%} of their time"


class LoadMeter:
    """Observes the machine from its construction on."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._start = self._sample()

    def load(self) -> MachineLoad | None:
        """The load since the construction; None where the system does not tell."""
        end = self._sample()
        if self._start is None or end is None:
            return None
        seconds, total, own, ran, waited = (b - a for a, b in zip(self._start, end, strict=True))
        others = max(total - own, 0.0) / max(seconds, 1e-9)
        runnable = max(ran, 0.0) + max(waited, 0.0)
        cores = os.cpu_count() or 1
        share = max(waited, 0.0) / runnable if runnable > 0 else 0.0
        return MachineLoad(cores, min(others, float(cores)), share)

    def _sample(self) -> tuple[float, ...] | None:
        """Seconds: the clock; CPU time of all processes and of own ones; running, waiting."""
        try:
            # cpu user nice system idle iowait irq softirq steal ...
            line = (self._proc / "stat").read_text().split("\n", 1)[0].split()
            ticks = [int(word) for word in line[1:9]]
        except (OSError, ValueError):
            return None
        if len(ticks) < 8 or not any(ticks):
            return None
        total = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        own = sum(os.times()[:4])  # user and system time, of this process and of ended children
        return (time.perf_counter(), total, own, *self._scheduled())

    def _scheduled(self) -> tuple[float, float]:
        """Seconds in which the threads of this process ran, and in which they waited to run."""
        ran = waited = 0
        for path in (self._proc / "self" / "task").glob("*/schedstat"):
            try:
                words = path.read_text().split()
                ran, waited = ran + int(words[0]), waited + int(words[1])
            except (OSError, ValueError, IndexError):  # a thread that has ended
                continue
        return ran / 1e9, waited / 1e9


def machine_load(seconds: float = 0.2) -> MachineLoad | None:
    """The load of the next `seconds`, in which the calling thread sleeps."""
    meter = LoadMeter()
    time.sleep(seconds)
    return meter.load()
