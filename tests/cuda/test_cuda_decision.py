# SPDX-License-Identifier: Apache-2.0
"""Whether a build gets CUDA, and for which GPUs: cmake/cuda_decision.cmake with stand-ins for the
driver's nvidia-smi and for nvcc."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DECISION = Path(__file__).resolve().parents[2] / "cmake" / "cuda_decision.cmake"
# Prints a version, and compiles for every architecture but 100.
NVCC = """#!/bin/sh
[ "$1" = --version ] && echo "release {version}, V{version}.0" && exit
case "$*" in *sm_100*) echo "error: unsupported gpu architecture" >&2; exit 1;; esac
"""

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and DECISION.is_file()), reason="needs cmake and the sources"
)


@pytest.fixture
def decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls CMake on a machine with these GPUs (None: no driver) and this nvcc (None: none)."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CUDAHOSTCXX"):
        monkeypatch.delenv(name, raising=False)

    def call(gpus: list[str] | None, nvcc: str | None = "13.0", **options: str):
        gpu_lines = "\n".join(gpus or [])
        smi = f'#!/bin/sh\necho "{gpu_lines}"\nexit {int(gpus is None)}\n'
        programs = {"nvidia-smi": smi}
        if nvcc is not None:
            programs["nvcc"] = NVCC.format(version=nvcc)
        for name, text in programs.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        if nvcc is None:  # not one of the machine's own either
            options["CMAKE_CUDA_COMPILER"] = "CMAKE_CUDA_COMPILER-NOTFOUND"
            monkeypatch.setenv("PATH", os.defpath)
        command = [shutil.which("cmake"), "-DCMAKE_CXX_COMPILER=c++"]
        command += [f"-D{name}={value}" for name, value in options.items()] + ["-P", str(DECISION)]
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PATH": path}
        )

    return call


@pytest.mark.parametrize(
    ("gpus", "architectures"),
    [
        (["9.0"], "90a"),
        (["8.6"], "86"),
        (["9.0", "9.0", "8.0"], "90a, 80"),
        (["7.5", "12.0"], "120"),
    ],
)
def test_auto_builds_for_the_visible_gpus(decide, gpus, architectures):
    done = decide(gpus, LAMPO_CUDA="AUTO")
    assert done.returncode == 0, done.stderr
    assert "CUDA backend ON: LAMPO_CUDA=AUTO and " in done.stdout
    assert done.stdout.endswith(f"works for {architectures}\n")


@pytest.mark.parametrize("gpus", [None, [], ["7.5"]])
def test_auto_builds_nothing_without_a_gpu(decide, gpus):
    if gpus is None and Path("/proc/driver/nvidia/gpus").exists():
        pytest.skip("this machine has a GPU, which its kernel names without nvidia-smi")
    done = decide(gpus, LAMPO_CUDA="AUTO")
    assert done.returncode == 0, done.stderr
    assert "CUDA backend OFF: LAMPO_CUDA=AUTO and no GPU" in done.stdout
    assert "LAMPO_CUDA=ON" in done.stdout
    assert done.stdout.count("\n") == 1


def test_on_needs_no_gpu(decide):
    done = decide([], LAMPO_CUDA="ON")
    assert done.stdout.endswith("works for 80, 90a\n"), done.stderr


@pytest.mark.parametrize("cuda", ["AUTO", "ON"])
def test_named_architectures_win(decide, cuda):
    done = decide(["9.0"], LAMPO_CUDA=cuda, LAMPO_CUDA_ARCHITECTURES="86;89")
    assert done.stdout.endswith("works for 86, 89\n"), done.stderr


@pytest.mark.parametrize(
    ("gpus", "nvcc", "why"),
    [
        (["9.0"], "12.3", "is CUDA 12.3, older than 12.4"),
        (["10.0"], "13.0", "cannot compile a test program for 100: error: unsupported gpu"),
        (["9.0"], None, "no CUDA compiler was found"),
    ],
)
def test_what_is_wrong_with_nvcc(decide, gpus, nvcc, why):
    done = decide(gpus, nvcc, LAMPO_CUDA="AUTO")
    assert done.returncode == 0, done.stderr
    assert "CUDA backend OFF: LAMPO_CUDA=AUTO and " in done.stdout
    assert why in done.stdout
    options = {"LAMPO_CUDA_ARCHITECTURES": "100"} if gpus == ["10.0"] else {}
    done = decide(gpus, nvcc, LAMPO_CUDA="ON", **options)
    assert done.returncode == 1
    assert "LAMPO_CUDA=ON, but " in " ".join(done.stderr.split())


def test_off_and_mistakes(decide):
    assert decide(["9.0"], LAMPO_CUDA="OFF").stdout.endswith("CUDA backend OFF: LAMPO_CUDA=OFF\n")
    done = decide(["9.0"], LAMPO_CUDA="yes")
    assert done.returncode == 1
    assert "must be AUTO, ON or OFF, not 'yes'" in done.stderr
