# SPDX-License-Identifier: Apache-2.0
"""Memory that is made ready before it is written."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading

import pytest
import torch

import lampo.runtime.huge_pages
from lampo.runtime.huge_pages import Prefaulter, prefault, reserve

MB = 1 << 20


def faults_of_writing(memory: torch.Tensor) -> int:
    """Page faults of this thread: threads of an earlier test may still run."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    memory.numpy().fill(1)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


@pytest.fixture
def memory() -> torch.Tensor:
    memory = reserve(64 * MB)
    if not prefault(memory[:1]):
        pytest.skip("this system cannot provide memory before it is written")
    faults_of_writing(torch.empty(1, dtype=torch.uint8))  # those of the code
    return memory


@pytest.fixture
def calls(monkeypatch):
    """Prefaulting takes no time, and what it is asked for is noted: (offset, bytes)."""
    noted: list[tuple[int, int]] = []

    def note(memory: torch.Tensor) -> bool:
        noted.append((memory.storage_offset(), memory.nbytes))
        return True

    monkeypatch.setattr(lampo.runtime.huge_pages, "prefault", note)
    return noted


def wait(prefaulter: Prefaulter) -> None:
    if prefaulter._thread is not None:
        prefaulter._thread.join(10)
        assert not prefaulter._thread.is_alive()


def test_prefault(memory):
    memory[5 * MB + 1] = 7
    assert prefault(memory[3 * MB + 5 : 32 * MB])
    assert memory[5 * MB + 1] == 7
    assert faults_of_writing(memory[4 * MB : 32 * MB]) <= 1
    assert faults_of_writing(memory[34 * MB :]) >= 15  # huge pages, or 512 times as many


def test_ahead_of_what_is_used(memory):
    prefaulter = Prefaulter(memory, 16 * MB)
    prefaulter.idle(8 * MB)
    wait(prefaulter)
    assert faults_of_writing(memory[10 * MB : 24 * MB]) <= 1
    assert faults_of_writing(memory[28 * MB :]) >= 15


def test_each_byte_once_and_none_behind_the_end(calls):
    prefaulter = Prefaulter(torch.empty(9 * MB, dtype=torch.uint8), 4 * MB)
    for used in (0, 0, MB, 7 * MB, 9 * MB):
        prefaulter.idle(used)
        wait(prefaulter)
        prefaulter.busy()
    # 4 MB at first, one more when one is used; those up to 7 are used before their turn comes.
    assert calls == [(0, 2 * MB), (2 * MB, 2 * MB), (4 * MB, MB), (7 * MB, 2 * MB)]


def test_work_stops_it(monkeypatch):
    prefaulter = Prefaulter(torch.empty(64 * MB, dtype=torch.uint8), 64 * MB)
    calls = []

    def slow(memory: torch.Tensor) -> bool:
        calls.append(memory.nbytes)
        prefaulter.busy()
        return True

    monkeypatch.setattr(lampo.runtime.huge_pages, "prefault", slow)
    prefaulter.idle(0)
    wait(prefaulter)
    assert calls == [2 * MB]


EXIT = """
import torch
from lampo.runtime import huge_pages

huge_pages.prefault = lambda memory: True  # the thread is in torch nearly all the time
huge_pages.Prefaulter(torch.empty(1 << 42, dtype=torch.uint8, device="meta"), 1 << 42).idle(0)
"""


def test_the_interpreter_may_end_meanwhile():
    for _ in range(3):
        subprocess.run([sys.executable, "-c", EXIT], check=True, timeout=60)


def test_no_thread_to_be_had(monkeypatch):
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    Prefaulter(torch.empty(MB, dtype=torch.uint8), MB).idle(0)


def test_a_system_that_cannot_is_asked_once(monkeypatch):
    calls = []
    monkeypatch.setattr(lampo.runtime.huge_pages, "prefault", lambda memory: calls.append(1))
    prefaulter = Prefaulter(torch.empty(64 * MB, dtype=torch.uint8), 32 * MB)
    for used in (0, 2 * MB, 4 * MB):
        prefaulter.idle(used)
        wait(prefaulter)
    assert calls == [1]
