# SPDX-License-Identifier: Apache-2.0
"""`lampo bench compare`: joined rows, verdicts by quartiles, warnings, the exit code."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lampo.cli.main import main


def times(median: float, spread: float = 0.02) -> dict[str, float]:
    return {
        "median": median, "q1": median * (1 - spread), "q3": median * (1 + spread), "count": 9
    }  # fmt: skip


def row(rows: int, **contestants: dict[str, float]) -> dict[str, Any]:
    return {"case": {"rows": rows, "dtype": "bf16"}, "times_us": contestants, "busy": False}


A: dict[str, Any] = {
    "benchmark": "op rms_norm",
    "platform": {"cpu": "a CPU"},
    "isa": {"chosen": "avx2"},
    "threads": {"chosen": 2},
    "device": "cpu",
    "versions": {"torch": "2.13"},
    "cases": [
        row(1, lampo=times(10), torch=times(30)),
        row(2, lampo=times(20)),
        row(3, lampo=times(30)),
        row(4, lampo=times(40)),
    ],
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    b = copy.deepcopy(A)
    b["versions"] = {"torch": "2.14", "numpy": "2"}
    b["cases"] = [
        row(1, lampo=times(8), torch=times(30)),
        row(2, lampo=times(20.3)),  # the quartiles overlap
        row(3, lampo=times(33)),
        row(5, lampo=times(50)),
    ]
    b["cases"][1]["busy"] = True
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, document in zip(paths, (A, b), strict=True):
        path.write_text(json.dumps(document))
    return paths


def test_verdicts(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", *map(str, files), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    verdicts = [(p["contestant"], p["verdict"], p["busy"]) for p in found["pairs"]]
    assert verdicts == [
        ("lampo", "faster", False),
        ("torch", "same", False),
        ("lampo", "same", True),
        ("lampo", "slower", False),
    ]
    first = found["pairs"][0]
    assert first["ratio"] == pytest.approx(0.8)
    assert first["low"] == pytest.approx(8 * 0.98 / (10 * 1.02))
    assert first["high"] == pytest.approx(8 * 1.02 / (10 * 0.98))
    assert found["only_a"] == ["op rms_norm: rows 4, dtype bf16: lampo"]
    assert found["only_b"] == ["op rms_norm: rows 5, dtype bf16: lampo"]
    assert found["warnings"] == [
        "version of numpy: unknown and 2", "version of torch: 2.13 and 2.14"
    ]  # fmt: skip
    assert "the runs differ in version of torch: 2.13 and 2.14" in err


def test_table(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 6
    assert any("0.800" in line and "faster" in line for line in lines)
    assert any("same *" in line for line in lines)
    assert "only in b.json: op rms_norm: rows 5, dtype bf16: lampo" in lines


@pytest.mark.parametrize(("ratio", "code"), [("1.05", 1), ("1.2", 0)])
def test_fail_above(
    ratio: str, code: int, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "compare", *map(str, files), "--fail-above", ratio]) == code
    assert ("slower: op rms_norm: rows 3" in capsys.readouterr().err) == (code == 1)


def test_other_machines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(A) | {"platform": {"cpu": "another"}, "isa": {"chosen": "avx512"}}
    for name, document in (("a", A), ("b", other)):
        (tmp_path / name).write_text(json.dumps(document))
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    err = capsys.readouterr().err
    assert "differ in processor: a CPU and another" in err
    assert "differ in instruction set: avx2 and avx512" in err


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cases": [{}], "benchmark": "x"}', "\x00"])
def test_other_files_are_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_text(text)
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not a file of `lampo bench ... --json`" in line
