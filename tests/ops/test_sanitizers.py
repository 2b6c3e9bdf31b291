# SPDX-License-Identifier: Apache-2.0
"""The core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # the pool lives to the end on purpose
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja") and (ROOT / "csrc").is_dir()),
    reason="needs cmake, ninja and the sources",
)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_core_under_sanitizers(sanitizers: str, tmp_path: Path) -> None:
    configure = ["cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DLAMPO_PYTHON=OFF"]
    configure += ["-DLAMPO_CPP_TESTS=ON", "-DLAMPO_CUDA=OFF", f"-DLAMPO_SANITIZE={sanitizers}"]
    subprocess.run(configure, check=True, capture_output=True)
    built = subprocess.run(["cmake", "--build", tmp_path], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:]
    for program in ("core_smoke", "program_stress"):
        ran = subprocess.run(
            [tmp_path / program], capture_output=True, text=True, env=os.environ | OPTIONS
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr[-5000:]
