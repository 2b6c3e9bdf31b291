# SPDX-License-Identifier: Apache-2.0
"""The session on a machine with a GPU: its clock, its report, and a rehearsal without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_session
from gpu_session import Plan, Session

REPORT = """<testsuites><testsuite>
<testcase classname="tests.cuda.test_a" name="test_good[1]" />
<testcase classname="tests.cuda.test_a" name="test_bad[2]"><failure>no</failure></testcase>
<testcase classname="tests.cuda.test_b" name="test_worse"><error>no</error></testcase>
<testcase classname="tests.cuda.test_b" name="test_absent"><skipped>no GPU</skipped></testcase>
</testsuite></testsuites>"""
FAILED = ["tests/cuda/test_a.py::test_bad[2]", "tests/cuda/test_b.py::test_worse"]


class Machine:
    """A clock, and commands that take the time they are asked to, up to their limit."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.takes = seconds
        self.commands: list[list[str]] = []

    def clock(self) -> float:
        return self.now

    def run(self, command: list[str], *, timeout: float, **options: Any) -> SimpleNamespace:
        self.commands.append(command)
        self.now += min(self.takes, timeout)
        if self.takes > timeout:
            raise subprocess.TimeoutExpired(command, timeout)
        options["stdout"].write("first\nlast line\n\n")
        return SimpleNamespace(returncode=0)


def session_on(machine: Machine, out: Path, seconds: float = 300) -> Session:
    return Session(out, seconds, clock=machine.clock, run=machine.run)


def test_steps_end_in_time(tmp_path: Path) -> None:
    machine = Machine(90)
    session = session_on(machine, tmp_path)
    for name in "abcde":
        session.step(name, 100, ["true"])
    assert [(r.status, r.seconds) for r in session.results] == [
        *3 * [("ok", 90)],
        ("cut short", 30),
        ("left out", 0),
    ]
    assert machine.now == 300 and session.failed
    steps = json.loads((tmp_path / "session.json").read_text())["steps"]
    assert [step["last_line"] for step in steps[::4]] == ["last line", "0 s were left"]


def test_a_step_has_its_limit(tmp_path: Path) -> None:
    machine = Machine(90)
    session = session_on(machine, tmp_path)
    assert session.step("a", 40, ["true"]).status == "cut short"
    assert machine.now == 40


@pytest.mark.parametrize("call", ["first", "second"])
def test_both_calls_fit_into_five_minutes(tmp_path: Path, monkeypatch, call: str) -> None:
    """Whatever their steps take: every command gets an end."""
    monkeypatch.setattr(Plan, "_compile_peers", lambda _: [])
    monkeypatch.setattr(gpu_session, "missing", lambda: [])
    monkeypatch.setattr(gpu_session, "some_tests", lambda count: FAILED * (count // 2))
    for takes in (1.0, 35.0, 1e9):
        machine = Machine(takes)
        session = session_on(machine, tmp_path / str(takes))
        plan = Plan(session, tmp_path)
        if call == "first":
            plan.first()
            names = ["install", "doctor", "instructions", "tests", "gpu_attention"]
        else:
            plan.second(FAILED)
            names = ["failed_again", *gpu_session.TOOLS]
        assert [r.name for r in session.results][:5] == names
        assert machine.now <= 300
        assert session.failed == any(r.seconds < takes for r in session.results)


def test_failed_tests_are_run_again(tmp_path: Path) -> None:
    machine = Machine(1)
    session = session_on(machine, tmp_path)
    (tmp_path / "tests.xml").write_text(REPORT)
    session.tests("tests", 60, [])
    assert (session.results[0].passed, session.results[0].failed) == (1, FAILED)
    assert gpu_session.failed_tests(tmp_path / "session.json") == FAILED
    again = Session(tmp_path / "again", 300, clock=machine.clock, run=machine.run)
    Plan(again, tmp_path, rehearse=True).second(FAILED)
    assert machine.commands[-1][-2:] == FAILED


LOG = """tests/cuda/test_a.py::test_good[1-{'a': 2}] PASSED            [ 10%]
tests/cuda/test_a.py::test_absent SKIPPED (no GPU)                    [ 20%]
tests/cuda/test_a.py::test_bad[2] FAILED                              [ 30%]
tests/cuda/test_b.py::test_hangs[x y] """


@pytest.mark.parametrize("end", ["", "\n~~~ Stack ~~~\n", "++++++++ Timeout ++++++++\n"])
def test_a_test_that_hangs_is_named_and_left_out(tmp_path: Path, end: str) -> None:
    """It ends pytest, without a report; another pytest runs the tests after it."""
    logs = [LOG + end, LOG.splitlines()[0]]
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.append(command)
        options["stdout"].write(logs.pop(0))
        return SimpleNamespace(returncode=1)

    session = Session(tmp_path, 300, run=run)
    session.tests("tests", 75, ["-m", "gpu"])
    hung = "tests/cuda/test_b.py::test_hangs[x y]"
    assert session.results[0].passed == 1
    assert session.results[0].failed == ["tests/cuda/test_a.py::test_bad[2]", hung]
    assert [result.name for result in session.results] == ["tests", "tests_rest"]
    assert commands[1][-4:] == [
        "--deselect=tests/cuda/test_a.py::test_good[1-{'a': 2}]",
        "--deselect=tests/cuda/test_a.py::test_absent",
        "--deselect=tests/cuda/test_a.py::test_bad[2]",
        f"--deselect={hung}",
    ]


def test_what_is_missing_is_said_first(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu_session, "PACKAGES", ("json", "no_such_package"))
    monkeypatch.setattr(gpu_session, "PROGRAMS", ("sh", "no_such_program"))
    session = session_on(Machine(1), tmp_path)
    Plan(session, tmp_path).first()
    first = session.results[0]
    assert (first.name, first.status) == ("packages", "failed")
    assert first.last_line == "missing: no_such_package, no_such_program"
    assert len(session.results) > 10 and session.failed


@pytest.mark.long
def test_gpu_tests_need_the_named_packages_alone(tmp_path: Path) -> None:
    """On a machine where nothing else is installed, though lampo's extras and chat use more."""
    (tmp_path / "sitecustomize.py").write_text(
        """
import sys
from importlib.machinery import PathFinder

ABSENT = "fastapi uvicorn pydantic prometheus_client openai schemathesis httpx llguidance psutil"
ABSENT = {*ABSENT.split(), "prompt_toolkit", "flashinfer"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = name.partition(".")[0] not in ABSENT
        return super().find_spec(name, path, target) if found else None

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q"]
    ran = subprocess.run(
        [*command, *gpu_session.gpu_test_files()],
        env=os.environ | {"PYTHONPATH": path},
        cwd=gpu_session.ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]


def test_every_file_with_gpu_tests() -> None:
    found = gpu_session.gpu_test_files()
    assert "tests/cuda/test_cuda_linear.py" in found and "tests/ops/test_merge_states.py" in found
    assert not [path for path in found if "on_cpu" in path]


@pytest.mark.slow
def test_rehearsal(tmp_path: Path, monkeypatch) -> None:
    """All steps but the build and compute-sanitizer, on the simulated GPU."""
    monkeypatch.setenv("LAMPO_MODELS", str(tmp_path / "models"))
    assert gpu_session.main([str(tmp_path / "out"), "first", "--rehearse", "--seconds=1200"]) == 0
    steps = json.loads((tmp_path / "out" / "session.json").read_text())["steps"]
    assert {step["status"] for step in steps} == {"ok"}
    assert next(step["passed"] for step in steps if step["name"] == "tests") > 100
    assert len(list((tmp_path / "out").glob("gpu_*.json"))) == 6
