# SPDX-License-Identifier: Apache-2.0
"""The other commands: help, doctor, pull."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lampo
from lampo.cli import probes
from lampo.cli.doctor import rows
from lampo.cli.main import main
from lampo.cli.profile import print_profile
from lampo.cli.report import bytes_text
from lampo.cli.terminal import note, one_line, show_logging, status
from lampo.profiling import OpProfile, Profile
from lampo.runtime.device import CudaDevice, CudaInfo
from lampo.runtime.machine_load import MachineLoad
from lampo.weights import ModelNotFoundError


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.split() == alone.split()
    for command in (
        "generate",
        "chat",
        "serve",
        "bench",
        "doctor",
        "profile",
        "pull",
        "list",
        "rm",
    ):
        assert command in alone
        assert main([command, "-h"]) == 0
        assert "Examples:" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lampo {lampo.__version__}\n"


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_help_cuts_no_names(columns: str) -> None:
    commands = ("", "generate", "chat", "serve", "bench serve", "profile", "pull", "list", "rm")
    script = "from lampo.cli.main import main\n"
    script += f"for command in {commands}: main([*command.split(), '--help'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": columns},
    )
    assert "--include-stop-str-in-output" in done.stdout
    assert "\u2026" not in done.stdout


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genrate"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lampo: error: No such command 'genrate'.")
    assert error.count("\n") == 1


def test_help_and_mistakes_do_not_load_torch() -> None:
    script = """if True:
        import sys
        from lampo.cli.main import main
        codes = [main(["generate", "--help"]), main(["generate", "-t", "nan", "Hi"])]
        codes.append(main(["generate", "-m", "no such model", "Hi"]))
        print(*codes, "torch" in sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "0 2 2 False"
    assert result.stderr.count("lampo: error: ") == 2


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        *("versions", "platform", "memory", "isa", "threads", "cuda", "torch", "ops", "cache"),
        "load",
    }
    assert not [name for name, values in found.items() if "error" in values]
    assert found["versions"]["lampo"] == lampo.__version__
    assert found["isa"]["chosen"] in found["isa"]["runnable"]
    assert found["threads"]["chosen"] >= 1
    assert found["cuda"]["usable"] or found["cuda"]["why"]
    assert found["ops"]["rms_norm"]["variant"] == f"cpu {found['isa']['chosen']}"
    assert main(["doctor"]) == 0
    table = capsys.readouterr().out
    assert found["platform"]["cpu"] in table
    assert "rms_norm" in table


def test_doctor_shows_devices() -> None:
    good = CudaDevice(0, "H200", (9, 0), 132, 150_000_000_000, 149_000_000_000, "sm_90a", "")
    old = CudaDevice(1, "P4", (6, 1), 20, 8_000_000_000, None, "", "no kernels for 6.1")
    new = CudaDevice(2, "B200", (10, 0), 148, 180_000_000_000, None, "compute_80", "")
    info = CudaInfo(True, "nvcc 13.0", "", ("90a-real",), "13.0", "13.1", (good, old, new))
    sections = ("versions", "platform", "memory", "isa", "threads", "torch", "ops", "cache", "load")
    found: dict[str, Any] = {name: {"error": "not asked"} for name in sections}
    found["cuda"] = dataclasses.asdict(info) | {"usable": info.usable}
    assert [row for row in rows(found) if "uda" in row[0].lower()] == [
        ("CUDA", "yes: runtime 13.0, driver 13.1"),
        ("CUDA build", "compiled: nvcc 13.0"),
        ("cuda:0", "H200, 9.0, 132 SMs, 149.0 GB of 150.0 GB free; kernels: sm_90a"),
        ("cuda:1", "P4, 6.1, 20 SMs, 8.0 GB; no kernels for 6.1"),
        (
            "cuda:2",
            "B200, 10.0, 148 SMs, 180.0 GB; kernels: compute_80, PTX, which the driver compiles at "
            "the first use: that start is slow; LAMPO_CUDA_ARCHITECTURES=100 builds lampo for this "
            "GPU",
        ),
    ]


def test_doctor_survives_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A probe that fails becomes a line with the reason."""

    def fail(*unused: object) -> dict[str, object]:
        raise RuntimeError("no\nluck [bold]")

    for name in ("versions", "machine", "memory", "isa", "threads", "cuda", "ops", "cache", "load"):
        monkeypatch.setattr(probes, name, fail)
    monkeypatch.setattr(probes, "torch_build", fail)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(values == {"error": "RuntimeError: no luck [bold]"} for values in found.values())
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.count("unknown: RuntimeError: no luck [bold]") == 10


@pytest.mark.parametrize(
    ("variable", "value", "section"),
    [("LAMPO_CPU_ISA", "avx9", "CPU kernels"), ("LAMPO_NUM_THREADS", "many", "threads")],
)
def test_doctor_names_bad_settings(variable: str, value: str, section: str) -> None:
    """The kernels read their settings once, so this is a process of its own."""
    script = "from lampo.cli.probes import *; from lampo.cli.doctor import _isa, _threads\n"
    script += "rows = [*_isa(isa()), *_threads(threads())]; print(rows)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, variable: value},
    )
    (line,) = (text for name, text in ast.literal_eval(result.stdout) if name == section)
    assert line.startswith(f"none: {variable}")
    assert value in line


def test_pull(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    assert main(["pull", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}\n", "lampo: already on this machine\n")

    def fetch(model: str | None, progress: Callable[[int, int | None], None]) -> Path:
        assert model == "org/name"
        for done in (0, 50, 100):
            progress(done, 100)
        return file

    monkeypatch.setattr("lampo.weights.pull", fetch)
    assert main(["pull", "org/name"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{file}\n"
    assert "fetching" in said.err
    assert "already" not in said.err
    assert main(["pull", "org/name", "--quiet"]) == 0
    assert capsys.readouterr() == (f"{file}\n", "")

    def fail(*unused: object) -> Path:
        raise ModelNotFoundError("model: 'org/name': it is not cached, and the hub is far")

    monkeypatch.setattr("lampo.weights.pull", fail)
    assert main(["pull", "org/name"]) == 2
    assert capsys.readouterr().err.startswith("lampo: error: model: 'org/name': it is not cached")


def test_logging(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("lampo")
    before = logger.level, list(logger.handlers)
    try:
        for quiet in (False, True):
            show_logging(quiet)
            logger.info("defaults: %s", "[top_p=0.9]")
            logger.warning("odd\nthing")
            expected = [] if quiet else ["lampo: defaults: [top_p=0.9]"]
            lines = capsys.readouterr().err.splitlines()
            assert lines == [*expected, "lampo: warning: odd thing"]
    finally:
        logger.setLevel(before[0])
        logger.handlers[:] = before[1]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_status_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes come before it; it is cut to one line, and without control characters."""
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    status.show("loading a\x1b[31m")
    note("odd")
    status.show("x" * 100)
    status.clear()
    status.clear()
    first = "\rlampo: loading a[31m\x1b[K"
    cut = f"\rlampo: {'x' * 72}\x1b[K"
    assert screen.getvalue() == f"{first}\r\x1b[Klampo: odd\n{first}{cut}\r\x1b[K"


@pytest.mark.parametrize("where", ["a pipe", "a dumb terminal"])
def test_no_status_line(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO() if where == "a pipe" else Screen()
    monkeypatch.setenv("TERM", "dumb" if where == "a dumb terminal" else "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    status.show("loading")
    status.clear()
    assert screen.getvalue() == ""


def test_bytes_text() -> None:
    assert [bytes_text(n) for n in (0, 999, 1000, 2_764_800, 5e12)] == [
        *("0 bytes", "999 bytes", "1.0 kB", "2.8 MB", "5000.0 GB")
    ]


def test_long_lines_are_bounded() -> None:
    assert one_line("a  b\n c") == "a b c"
    text = one_line(f"model: {'x' * 70_000} is none")
    assert len(text) < 1100
    assert text.startswith("model: xxx")
    assert text.endswith("xxx is none")
    assert f"... ({len('model: ') + 70_000 + len(' is none') - 1000} characters) ..." in text


def profile(read_bandwidth: float, others: float) -> Profile:
    ops = [OpProfile("linear 1536x576 q4_1", 30, 123_456_789, 0.0123456)]
    load = MachineLoad(2, others, 0.0)
    return Profile(ops, 0.0123456, read_bandwidth, 1, 1, 1, load)


def test_tables_of_narrow_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They wrap lines, but no digit is cut."""
    monkeypatch.setenv("COLUMNS", "20")
    print_profile(profile(20e9, 0.0))
    said = capsys.readouterr()
    assert "linear 1536x576 q4_1     30  12346   100.0  123.46  10.0       50" in said.out
    assert said.out.splitlines()[-1] == (
        "batch 1, 1 token in the cache, 1 thread: 81 tokens/s; limit: 20.0 GB/s"
    )
    assert said.err == ""


def test_an_implausible_limit_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Reading alone was slower than the step, as the machine was busy: 677 % is no result."""
    print_profile(profile(10e9 / 6.77, 1.9))
    said = capsys.readouterr()
    assert "677" not in said.out
    assert "limit: unknown, as reading alone reached 1.5 GB/s" in said.out
    assert "warning: the machine was busy: other processes took 1.9 of 2 CPUs" in said.err


def test_a_limit_holds_for_large_parts() -> None:
    """A part that finds its bytes in a cache may be faster than memory."""
    small = OpProfile("append_kv", 1, 1_000_000, 1e-6)
    slow, fast = (OpProfile("linear", 1, 100_000_000, seconds) for seconds in (0.02, 0.005))
    load = MachineLoad(2, 0.0, 0.0)
    for large, plausible in ((slow, True), (fast, False)):
        found = Profile([large, small], 0.1, 10e9, 1, 0, 2, load)
        assert found.limit_is_plausible is plausible


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script that a shell sources, and what `lampo` answers it."""
    assert main(["completion", shell]) == 0
    assert f"_LAMPO_COMPLETE=complete_{shell}" in capsys.readouterr().out
    asked = {
        "_LAMPO_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "lampo generate --temp",
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": "lampo generate --temp",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    command = [sys.executable, "-m", "lampo"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **asked})
    assert "--temperature" in done.stdout, done.stderr
