# SPDX-License-Identifier: Apache-2.0
"""scripts/count_instructions: what fails, what is reported, what is skipped."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "count_instructions"
COUNTS = {"rms_norm": 1000, "linear q4_0, rows 1": 5000}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("count_instructions", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(module, "BASELINE", tmp_path / "baseline.json")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    baseline = {"compiler": "12.2.0", "isa": "avx2", "threads": 1, "instructions": COUNTS}
    module.BASELINE.write_text(json.dumps(baseline))
    return module


@pytest.fixture
def run(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, list[str]]]:
    """Runs the script on a program and a valgrind that claim these counts."""
    program = tmp_path / "count_calls"

    def main(
        counts: dict[str, int], *words: str, compiler: str = "12.2.0"
    ) -> tuple[int, list[str]]:
        lines = "\\n".join([f"compiler {compiler}, avx2", *counts])
        program.write_text(f"#!/bin/sh\nprintf '{lines}\\n'\n")
        valgrind = [f"#!{sys.executable}", "import subprocess, sys, os"]
        valgrind += ["assert os.environ['LAMPO_CPU_ISA'] == 'avx2'"]
        valgrind += ["file = [w for w in sys.argv if 'out-file' in w][0].split('=')[1]"]
        valgrind += [f"for i, n in enumerate({list(counts.values())}, 1):"]
        valgrind += ["    open(f'{file}.{i}', 'w').write(f'events: Ir\\ntotals: {n}\\n')"]
        valgrind += ["subprocess.run(sys.argv[-1], check=True)"]
        (tmp_path / "valgrind").write_text("\n".join(valgrind))
        for file in (program, tmp_path / "valgrind"):
            file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(program), *words])
        return script.main(), capsys.readouterr().out.splitlines()

    return main


def test_equal_counts_pass(run: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = run(COUNTS | {"rms_norm": 1030})
    assert code == 0
    assert lines == ["count_instructions: 2 calls, 0 beyond 3% more, 0 with fewer"]


def test_more_instructions_fail(run: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = run(COUNTS | {"rms_norm": 1031})
    assert code == 1
    assert lines[0] == "rms_norm: 1,000 -> 1,031 instructions, +3.1%"
    assert "1 beyond 3% more" in lines[1]


def test_fewer_instructions_ask_for_an_update(
    run: Callable[..., tuple[int, list[str]]], script: ModuleType
) -> None:
    code, lines = run(COUNTS | {"rms_norm": 900})
    assert code == 0
    assert "--update stores the present counts" in lines[-1]
    assert run(COUNTS | {"rms_norm": 900}, "--update")[0] == 0
    assert json.loads(script.BASELINE.read_text())["instructions"]["rms_norm"] == 900


def test_new_and_missing_calls_fail(run: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = run({"rms_norm": 1000, "gelu": 10})
    assert code == 1
    assert lines[:2] == ["gelu: not in the baseline", "linear q4_0, rows 1: only in the baseline"]


def test_another_compiler_cannot_fail(run: Callable[..., tuple[int, list[str]]]) -> None:
    code, lines = run(COUNTS | {"rms_norm": 2000}, compiler="13.1.0")
    assert code == 0
    assert lines[0].startswith("rms_norm: 1,000 -> 2,000")
    assert "the baseline's is 12.2.0: differences are no failure" in lines[-1]


def test_skips_say_why(
    script: ModuleType,
    run: Callable[..., tuple[int, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    code, lines = run(COUNTS | {"rms_norm": 2000})
    assert (code, lines) == (0, ["count_instructions: skipped: valgrind is not installed"])
    monkeypatch.setattr(script.shutil, "which", lambda name: "/usr/bin/valgrind")
    monkeypatch.setattr(script.platform, "machine", lambda: "aarch64")
    code, lines = run(COUNTS)
    assert (code, lines[0][:38]) == (0, "count_instructions: skipped: the basel")


def test_the_baseline_is_complete() -> None:
    root = SCRIPT.parents[1]
    stored = json.loads((root / "benchmarks" / "results" / "instructions.json").read_text())
    assert (stored["isa"], stored["threads"]) == ("avx2", 1)
    ops = {name.split()[0].rstrip(",") for name in stored["instructions"]}
    from lampo.bench.axes import OPS

    assert ops == {*OPS, "pack_weight"} - {"call"}  # quantize_weight runs once per model
