# SPDX-License-Identifier: Apache-2.0
"""Builds the CUDA sources for the CPU: the executor plain, the kernels with a sanitizer.

python tests/cuda_on_cpu/build.py FOLDER     for use by hand; the tests do the same
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# What is compiled with a sanitizer: the kernels, and what lies between them and the program.
KERNELS = [*sorted((ROOT / "csrc/cuda").glob("*/*.cu")), HERE / "kernels/self_test.cu"]
EXECUTOR = [HERE / "simt" / name for name in ("fiber.cpp", "executor.cpp", "runtime.cpp")]
# The host's side of the ops. What asks the driver of a real device is left out.
ABSENT = {"cuda_info.cpp", "device_info.cpp", "error.cpp"}
HOST = ("common/*.cpp", "ops/*.cpp", "cuda/*/*.cpp")
OPS = [
    path
    for pattern in HOST
    for path in sorted((ROOT / "csrc").glob(pattern))
    if path.name not in ABSENT
]
PROGRAM = [HERE / "program.cpp", *sorted((HERE / "calls").glob("*.cpp")), *OPS]

SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
DEFINES = {"address": "-DSIMT_ASAN", "thread": "-DSIMT_TSAN"}
# As in CMakeLists.txt, and what nvcc takes for granted: types may alias, unroll is a pragma.
FLAGS = [
    *("-std=c++20", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fno-omit-frame-pointer"),
    *("-I", str(HERE / "twin"), "-I", str(HERE), "-I", str(ROOT / "csrc")),
    *("-include", "cuda_runtime.h", "-fmax-errors=5"),  # as nvcc does
    "-DLAMPO_WITH_CUDA=1",
    "-DLAMPO_MAX_BLOCKS=4",  # so that a few rows already make blocks stride
    "-DLAMPO_SAMPLE_COPY_BYTES=40000",  # and go in turns
    "-DLAMPO_SAMPLE_THREADS=128",  # and do not take minutes
]
EXECUTOR_FLAGS = ["-fno-tree-loop-distribute-patterns"]


def _compile(source: Path, target: Path, flags: list[str]) -> Path:
    launcher = ["ccache"] if shutil.which("ccache") else []
    command = [*launcher, compiler(), "-x", "c++", "-c", str(source), "-o", str(target)]
    ran = subprocess.run([*command, *FLAGS, *flags], capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(f"{source}:\n{ran.stderr[-6000:]}")
    return target


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def compile_all(sources: list[Path], folder: Path, flags: list[str]) -> list[Path]:
    """Objects of the sources, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [
            pool.submit(_compile, source, folder / f"{source.parent.name}_{source.name}.o", flags)
            for source in sources
        ]
        return [future.result() for future in futures]


def link(objects: list[Path], target: Path, flags: list[str]) -> None:
    command = [compiler(), *flags, *map(str, objects), "-o", str(target)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(ran.stderr[-6000:])


def build(folder: Path) -> dict[str, Path]:
    """The programs, by sanitizer."""
    programs = {}
    for name, sanitize in SANITIZERS.items():
        # ThreadSanitizer must not see the executor's own accesses: they are no program's.
        plain = EXECUTOR + (PROGRAM if name == "thread" else [])
        checked = KERNELS + (PROGRAM if name == "address" else [])
        objects = compile_all(checked, folder / name, [DEFINES[name], "-O1", *sanitize])
        objects += compile_all(plain, folder / name, [DEFINES[name], "-O2", *EXECUTOR_FLAGS])
        programs[name] = folder / name / "cuda_on_cpu"
        link(objects, programs[name], sanitize)
    return programs


if __name__ == "__main__":
    for program in build(Path(sys.argv[1])).values():
        print(program)
