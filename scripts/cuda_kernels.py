# SPDX-License-Identifier: Apache-2.0
"""Compilation of csrc/cuda/ by the build's own commands, and ptxas's report of every kernel.

For scripts/check_cuda and benchmarks/gpu_model.py. Needs nvcc, no GPU.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_PROPERTIES = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
_USED = re.compile(r"Used (\d+) registers")
# ptxas says as information that products of wgmma wait for each other.
_COMPLAINT = re.compile(r"^(?!.*ptxas info).*(warning|error)|Performance Loss", re.IGNORECASE)
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    """What ptxas says of one kernel on one architecture."""

    file: str
    name: str
    architecture: str
    registers: int = 0
    shared: int = 0
    stack: int = 0
    spilled: int = 0


def has_nvcc() -> bool:
    """Whether CMake will find nvcc."""
    return bool(shutil.which("nvcc") or os.environ.get("CUDACXX") or os.environ.get("CUDA_HOME"))


def configure(architectures: str, build: Path) -> list[dict[str, str]]:
    """The compile commands of the CUDA files. Raises RuntimeError with CMake's output."""
    command = [
        *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        *("-DLAMPO_PYTHON=OFF", "-DLAMPO_CUDA=ON", "-DLAMPO_WERROR=ON"),
        f"-DLAMPO_CUDA_ARCHITECTURES={architectures}",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"cmake failed\n{result.stdout}{result.stderr}")
    commands = json.loads((build / "compile_commands.json").read_text())
    return [command for command in commands if command["file"].endswith(".cu")]


def source_of(command: dict[str, str]) -> str:
    return str(Path(command["file"]).relative_to(ROOT))


def compile_file(command: dict[str, str], output: Path, *, cubin: bool = False) -> tuple[int, str]:
    """Compiles to `output`, an object or, of a single architecture, its machine code alone.

    Returns the exit status and the messages, with ptxas's report.
    """
    arguments = shlex.split(command["command"])
    arguments[arguments.index("-o") + 1] = str(output)
    if cubin:
        arguments[arguments.index("-c")] = "-cubin"
    # The report comes in place of a launcher's cached answer.
    arguments = [a for a in arguments if Path(a).name != "ccache"]
    result = subprocess.run(
        [*arguments, "-Xptxas=-v"], cwd=command["directory"], capture_output=True, text=True
    )
    return result.returncode, result.stdout + result.stderr


def parse_report(file: str, text: str) -> tuple[list[Kernel], list[str]]:
    """Kernels, by mangled names, and the lines that are complaints."""
    kernels: list[Kernel] = []
    complaints: list[str] = []
    for line in text.splitlines():
        if _COMPLAINT.search(line):
            complaints.append(line)
        elif match := _ENTRY.search(line):
            kernels.append(Kernel(file, match[1], match[2]))
        elif kernels and (match := _PROPERTIES.search(line)):
            kernels[-1].stack = max(kernels[-1].stack, int(match[1]))
            kernels[-1].spilled += int(match[2]) + int(match[3])
        elif kernels and (match := _USED.search(line)):
            kernels[-1].registers = int(match[1])
            kernels[-1].shared = int(m[1]) if (m := _SHARED.search(line)) else 0
    return kernels, complaints


def demangle(names: list[str]) -> list[str]:
    """Names as people write them: `rms_norm_kernel<float, float, true, 2>`."""
    result = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    found = []
    for name in result.stdout.splitlines():
        name = re.sub(r"lampo::(cuda::)?|\(anonymous namespace\)::|^void ", "", name)
        found.append(re.sub(r"\((bool|int)\)", "", re.sub(r">\(.*\)$", ">", name)))
    return found
