# SPDX-License-Identifier: Apache-2.0
"""Builds the CUDA sources for the CPU with Ninja, in build/cuda_on_cpu/: what changed since.

Two programs with a sanitizer each, in which the executor is plain, and a Python module without.
Where there is nvcc also a plain program, which can run kernels from PTX (ptx/build.py).
python tests/cuda_on_cpu/build.py     builds all of them and shows how far it is, before pytest
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FOLDER = ROOT / "build" / "cuda_on_cpu"

# Sources compiled with a sanitizer: the kernels, and the executor that runs them.
KERNELS = [
    *sorted((ROOT / "csrc/cuda").glob("*/*.cu")),
    *(HERE / "kernels" / name for name in ("self_test.cu", "hopper.cu")),
]
# Of these the translator of PTX knows all instructions: those of TMA and wgmma it does not.
KERNELS_FROM_PTX = [path for path in KERNELS if "hopper" not in path.name]
EXECUTOR = [
    HERE / "simt" / f"{name}.cpp"
    for name in ("async_proxy", "driver", "executor", "fiber", "runtime")
]
# The host's side of the ops. What asks the driver of a real device is left out.
ABSENT = {"cuda_info.cpp", "device_info.cpp", "error.cpp"}
HOST = ("common/*.cpp", "ops/*.cpp", "cuda/*/*.cpp")
OPS = [
    path
    for pattern in HOST
    for path in sorted((ROOT / "csrc").glob(pattern))
    if path.name not in ABSENT
]
MAIN = [HERE / "program.cpp", *sorted((HERE / "calls").glob("*.cpp"))]
PROGRAM = [*(path for path in MAIN if path.name != "ptx.cpp"), *OPS]
TRANSLATED = [
    HERE / "ptx/runtime" / f"{name}.cpp"
    for name in ("arithmetic", "launch", "math", "memory", "threads")
]

SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
DEFINES = {"address": "-DSIMT_ASAN", "thread": "-DSIMT_TSAN"}
LIMITS = [
    "-DLAMPO_WITH_CUDA=1",
    "-DLAMPO_MAX_BLOCKS=4",  # so that a few rows already make blocks stride
    "-DLAMPO_SAMPLE_COPY_BYTES=40000",  # and go in turns
    "-DLAMPO_SAMPLE_THREADS=128",  # and do not take minutes
]
# As in CMakeLists.txt, and what nvcc takes for granted: types may alias, unroll is a pragma.
FLAGS = [
    *("-std=c++20", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    "-Wno-psabi",  # of tensor maps as arguments
    *("-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing", "-fno-omit-frame-pointer"),
    *("-I", str(HERE / "twin"), "-I", str(HERE), "-I", str(ROOT / "csrc")),
    *("-include", "cuda_runtime.h", "-fmax-errors=5"),  # as nvcc does
    *LIMITS,
]
EXECUTOR_FLAGS = ["-fno-tree-loop-distribute-patterns"]
BINDINGS = (
    *("attention", "elementwise", "linear", "recurrent", "sampling"),
    *("stream", "tensor_arg"),
)
MODULE = [
    *(ROOT / "csrc/bindings" / f"{name}.cpp" for name in BINDINGS),
    *(HERE / "extension.cpp", HERE / "calls/cpu_absent.cpp"),
]

PROGRAMS = {name: FOLDER / name / "cuda_on_cpu" for name in SANITIZERS}
EXTENSION = FOLDER / "extension" / f"cuda_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
PLAIN = FOLDER / "plain" / "cuda_on_cpu"
DEVICE_MATH = HERE / "ptx/device_math.cu"
# As in cmake/cuda.cmake.
NVCC_FLAGS = ["-std=c++20", "--fmad=false", "-I", str(ROOT / "csrc"), "-I", str(HERE), *LIMITS]
ARCHITECTURES = ("sm_80", "sm_90a")
RULES = """
rule compile
  command = $launcher $compiler -x c++ -c $in -o $out -MD -MF $out.d $shared $flags
  depfile = $out.d
  deps = gcc
  description = $out
rule ptx
  command = $nvcc -ptx -MD -MF $out.d $shared_ptx $flags $in -o $out
  depfile = $out.d
  deps = gcc
  description = $out
rule translate_functions
  command = $python -m cuda_on_cpu.ptx.translate $in $out
  description = $out
rule link
  command = $compiler $flags $in -o $out
  description = $out
"""


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def ptx_of(source: Path, architecture: str) -> Path:
    """The PTX of a CUDA source."""
    return FOLDER / "ptx" / architecture / f"{source.stem}.ptx"


def ninja() -> str | None:
    """The one on PATH, or that of this interpreter's environment."""
    return shutil.which("ninja", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")


def build(*targets: Path) -> None:
    """Makes these targets, or all, up to date; Ninja prints its progress on stdout.

    Raises:
        RuntimeError: something did not compile.
    """
    run_ninja(FOLDER, _rules(), *targets)


def run_ninja(folder: Path, rules: str, *targets: Path) -> None:
    """Runs Ninja in a folder, one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(rules)
        command = [ninja() or "ninja", "-C", str(folder), "-j", str(os.cpu_count())]
        ran = subprocess.run([*command, *map(str, targets)])
    if ran.returncode != 0:
        raise RuntimeError("tests/cuda_on_cpu does not compile; Ninja has said why")


def _rules() -> str:
    """The text of build.ninja."""
    lines = [
        f"launcher = {shutil.which('ccache') or ''}",
        f"compiler = {compiler()}",
        f"shared = {_words(FLAGS)}",
        f"nvcc = {nvcc() or ''}",
        f"shared_ptx = {_words(NVCC_FLAGS)}",
        f"python = PYTHONPATH={HERE.parent} {sys.executable}",
        RULES,
    ]

    def compile_all(sources: list[Path], folder: Path, flags: list[str]) -> list[str]:
        objects = []
        for source in sources:
            objects.append(str(folder / f"{source.parent.name}_{source.name}.o"))
            edge = f"build {_path(objects[-1])}: compile {_path(source)}"
            lines.append(f"{edge}\n  flags = {_words(flags)}")
        return objects

    def link(objects: list[str], target: Path, flags: list[str]) -> None:
        edge = f"build {_path(target)}: link {' '.join(map(_path, objects))}"
        lines.append(f"{edge}\n  flags = {_words(flags)}")

    for name, sanitize in SANITIZERS.items():
        # ThreadSanitizer must not see the executor's own accesses: they are no program's.
        plain = EXECUTOR + (PROGRAM if name == "thread" else [])
        checked = KERNELS + (PROGRAM if name == "address" else [])
        objects = compile_all(checked, FOLDER / name, [DEFINES[name], "-O1", *sanitize])
        objects += compile_all(plain, FOLDER / name, [DEFINES[name], "-O2", *EXECUTOR_FLAGS])
        link(objects, PROGRAMS[name], sanitize)
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-O1", "-fPIC", "-fvisibility=hidden", *EXECUTOR_FLAGS]
    flags += [flag for path in includes for flag in ("-isystem", path)]
    both = compile_all([*KERNELS, *EXECUTOR, *OPS], EXTENSION.parent, flags)
    link([*compile_all(MODULE, EXTENSION.parent, flags), *both], EXTENSION, ["-shared"])
    if nvcc() is not None:
        for architecture in ARCHITECTURES:
            for source in KERNELS_FROM_PTX:
                edge = f"build {_path(ptx_of(source, architecture))}: ptx {_path(source)}"
                lines.append(f"{edge}\n  flags = -arch={architecture}")
        ptx, math = (PLAIN.parent / f"device_math.{suffix}" for suffix in ("ptx", "cpp"))
        lines.append(
            f"build {_path(ptx)}: ptx {_path(DEVICE_MATH)}\n  flags = -arch=sm_80 -rdc=true"
        )
        sources = " ".join(map(_path, sorted((HERE / "ptx").glob("*.py"))))
        lines.append(f"build {_path(math)}: translate_functions {_path(ptx)} | {sources}")
        # Exports what translated kernels call.
        own = compile_all([*MAIN, *TRANSLATED, math], PLAIN.parent, ["-DSIMT_PTX", "-O1"])
        link([*own, *both], PLAIN, ["-rdynamic", "-ldl"])
    return "\n".join(lines) + "\n"


def _path(path: str | Path) -> str:
    """A path in Ninja's language."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _words(flags: list[str]) -> str:
    return shlex.join(flags).replace("$", "$$")


if __name__ == "__main__":
    try:
        build(*PROGRAMS.values(), EXTENSION)
        if nvcc() is not None:
            sys.path.insert(0, str(HERE.parent))
            from cuda_on_cpu.ptx.build import build_kernels

            build_kernels("sm_90a")
    except RuntimeError as error:
        sys.exit(f"build.py: {error}")
