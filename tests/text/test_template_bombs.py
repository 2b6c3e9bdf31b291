# SPDX-License-Identifier: Apache-2.0
"""Random templates of dangerous operations end in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "support" / "template_bombs.py"


def run(seed: int, seconds: float) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs a limit on the memory of a process")
    command = [sys.executable, str(PROGRAM), str(seed), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) > 0


def test_bombs() -> None:
    run(seed=1, seconds=15)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(2, 8))
def test_many_bombs(seed: int) -> None:
    run(seed, seconds=300)
