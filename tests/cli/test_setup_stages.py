# SPDX-License-Identifier: Apache-2.0
"""The display of a stage by scripts/setup.sh: progress, duration, reason of a failure."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "scripts" / "setup.sh"
NINJA = "  [{}/65] Building CXX object CMakeFiles/_C.dir/csrc/bindings/linear.cpp.o (and so on)"

pytestmark = pytest.mark.skipif(not SETUP.is_file(), reason="needs the sources")


def run(folder: Path, command: str, stderr: int) -> int:
    (folder / "build").mkdir()
    script = f'set -euo pipefail; . "{SETUP}"; {command}; echo "and goes on" >&2'
    return subprocess.run(["bash", "-c", script], cwd=folder, stderr=stderr).returncode


def said(folder: Path, command: str) -> tuple[int, str]:
    """With stderr in a file."""
    with (folder / "stderr").open("w+") as file:
        code = run(folder, command, file.fileno())
        file.seek(0)
        return code, file.read()


def shown(folder: Path, command: str) -> tuple[int, str]:
    """With stderr on a terminal."""
    ours, theirs = pty.openpty()
    code = run(folder, command, theirs)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while part := os.read(ours, 1 << 16):
            text += part
    os.close(ours)
    return code, text.decode()


def test_one_line_for_a_file(tmp_path: Path) -> None:
    code, text = said(tmp_path, "stage work printf 'a\\nb\\n'")
    first, *others = text.splitlines()
    assert code == 0
    assert first.split() == ["work", "0", "s"]
    assert others == ["and goes on"]
    assert (tmp_path / "build" / "setup.log").read_text() == "a\nb\n"


def test_sparse_lines_for_a_file(tmp_path: Path) -> None:
    """Also while the command is silent."""
    (tmp_path / "lines").write_text(f"{NINJA.format(1)}\n{NINJA.format(2)}\n")
    command = "progress_seconds=1; stage work bash -c 'cat lines; sleep 3'"
    code, text = said(tmp_path, command)
    assert code == 0
    *progress, end, _ = text.splitlines()
    assert 1 <= len(progress) <= 4
    assert all("[2/65] _C.dir/csrc/bindings/linear.cpp.o" in line for line in progress)
    assert "[" not in end


def test_the_latest_line_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text(f"{NINJA.format(1)}\n{NINJA.format(2)}\n")
    code, text = shown(tmp_path, "stage work cat lines")
    assert code == 0
    for n in (1, 2):
        assert f"\r\x1b[Kwork{' ' * 28}0 s  [{n}/65] _C.dir/csrc/bindings/linear" in text
    assert "Building" not in text
    assert all(len(line.removeprefix("\x1b[K")) < 80 for line in text.splitlines()), "no wrapping"
    assert text.index("[2/65]") < text.index("and goes on")


@pytest.mark.parametrize("show", [said, shown])
def test_a_failure_shows_the_end_of_the_log(tmp_path: Path, show) -> None:
    code, text = show(tmp_path, "stage work bash -c 'seq 1 100; echo oh no >&2; exit 3'")
    assert code == 1
    assert "work" + " " * 28 + "failed after" in text
    lines = text.replace("\r", "").splitlines()
    assert lines[-2:] == ["oh no", "All of it is in build/setup.log."]
    assert "62" in lines and "61" not in lines
    assert (tmp_path / "build" / "setup.log").read_text().startswith("1\n2\n")
