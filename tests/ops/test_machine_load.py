# SPDX-License-Identifier: Apache-2.0
"""The load of the machine, from a /proc that says what the test wants, and from the real one."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from lampo.runtime.machine_load import LoadMeter, MachineLoad, machine_load


def write(proc: Path, *, user: float, idle: float, steal: float, ran: float, waited: float) -> None:
    """Seconds, as /proc has them: in ticks, and in nanoseconds per thread."""
    tick = os.sysconf("SC_CLK_TCK")
    ticks = [int(s * tick) for s in (user, 0, 0, idle, 0, 0, 0, steal, 0, 0)]
    (proc / "stat").write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3\n")
    for thread, share in (("1", 0.25), ("2", 0.75)):
        folder = proc / "self" / "task" / thread
        folder.mkdir(parents=True, exist_ok=True)
        times = int(ran * share * 1e9), int(waited * share * 1e9)
        (folder / "schedstat").write_text(f"{times[0]} {times[1]} 7\n")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Replaces the clock and the CPU time of this process."""
    now = {"wall": 0.0, "own": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    times = os.times()
    fields = {"children_user": 0.0, "children_system": 0.0, "elapsed": 0.0}
    monkeypatch.setattr(os, "times", lambda: type(times)([now["own"], 0.0, *fields.values()]))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    return now


def test_a_busy_machine(tmp_path: Path, clock: dict[str, float]) -> None:
    """10 s of two CPUs: 4 s are this process', 9 + 3 s others' and the host's."""
    write(tmp_path, user=100.0, idle=50.0, steal=1.0, ran=2.0, waited=1.0)
    meter = LoadMeter(tmp_path)
    write(tmp_path, user=113.0, idle=54.0, steal=4.0, ran=6.0, waited=5.0)
    clock |= {"wall": 10.0, "own": 4.0}
    load = meter.load()
    assert load == MachineLoad(2, pytest.approx(1.2), pytest.approx(0.5))
    assert load is not None
    assert load.busy
    assert load.describe() == (
        "other processes took 1.2 of 2 CPUs; threads were ready, but not running, 50% of their time"
    )


def test_ended_children_are_no_others(
    tmp_path: Path, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 s of two CPUs: 4 s are this process', 12 those of programs that it has run."""
    write(tmp_path, user=0.0, idle=50.0, steal=0.0, ran=0.0, waited=0.0)
    meter = LoadMeter(tmp_path)
    write(tmp_path, user=16.0, idle=54.0, steal=0.0, ran=4.0, waited=0.0)
    times = type(os.times())
    monkeypatch.setattr(os, "times", lambda: times([3.0, 1.0, 10.0, 2.0, 0.0]))
    clock["wall"] = 10.0
    assert meter.load() == MachineLoad(2, pytest.approx(0.0), pytest.approx(0.0))


def test_a_quiet_machine(tmp_path: Path, clock: dict[str, float]) -> None:
    write(tmp_path, user=0.0, idle=10.0, steal=0.0, ran=0.0, waited=0.0)
    meter = LoadMeter(tmp_path)
    write(tmp_path, user=19.0, idle=11.0, steal=0.5, ran=18.5, waited=0.1)
    clock |= {"wall": 10.0, "own": 18.5}
    load = meter.load()
    assert load is not None
    assert load.others == pytest.approx(0.1)
    assert not load.busy


@pytest.mark.parametrize("stat", [None, "", "cpu  0 0 0 0 0 0 0 0 0 0\n", "cpu x\n", "cpu 1 2\n"])
def test_a_system_that_does_not_tell(tmp_path: Path, stat: str | None) -> None:
    if stat is not None:
        (tmp_path / "stat").write_text(stat)
    assert LoadMeter(tmp_path).load() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_this_machine() -> None:
    load = machine_load(0.05)
    if load is None:
        pytest.skip("this kernel tells no load")
    assert 0.0 <= load.others <= load.cores == os.cpu_count()
    assert 0.0 <= load.waited <= 1.0
