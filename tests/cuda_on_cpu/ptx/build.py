# SPDX-License-Identifier: Apache-2.0
"""Kernels from PTX, as object files that the plain program loads: nvcc, translate.py, g++.

The name of an object file is the hash of its C++ text, so that one file serves every kernel with
the same instructions, and a kernel that did not change is not compiled again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from cuda_on_cpu.build import (
    FOLDER,
    HERE,
    KERNELS_FROM_PTX,
    NVCC_FLAGS,
    PLAIN,
    ROOT,
    build,
    compiler,
    nvcc,
    ptx_of,
    run_ninja,
)
from cuda_on_cpu.ptx.parse import parse
from cuda_on_cpu.ptx.translate import translate_kernel

ANONYMOUS = "(anonymous namespace)"  # names in it may be those of another file too
OBJECTS = FOLDER / "ptx" / "kernels"
FLAGS = [
    *("-std=c++20", "-O1", "-shared", "-fPIC", "-I", str(HERE)),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing"),
]
RULES = """
rule kernel
  command = $compiler -x c++ $in -o $out -MD -MF $out.d $flags
  depfile = $out.d
  deps = gcc
  description = $out
"""


@dataclass(frozen=True)
class Translated:
    """A kernel of a PTX file and its C++ text."""

    name: str  # demangled; of an anonymous namespace: after the source's name and ": "
    file: str
    line: int
    hash: str

    @property
    def object(self) -> Path:
        return OBJECTS / f"{self.hash}.so"


def build_kernels(
    architecture: str,
    chosen: Callable[[str], bool] = lambda name: True,
    sources: Iterable[Path] = KERNELS_FROM_PTX,
) -> Path:
    """Builds the chosen kernels, and the program; returns the list that the program is to be given.

    Raises:
        RuntimeError: something did not compile; PtxError, one of them, for PTX that is not known.
    """
    ptx = [ptx_of(source, architecture) for source in sources]
    build(PLAIN, *ptx)
    kernels = [kernel for path in ptx for kernel in translate(path) if chosen(kernel.name)]
    compile_kernels(kernels)
    return write_list(kernels)


def build_planted(source: Path, header: str, right: str, wrong: str) -> Path:
    """The kernels of a source with other text in a header of csrc/; the rest runs as by g++."""
    text = (ROOT / "csrc" / header).read_text()
    if right not in text:
        raise RuntimeError(f"{header} has changed: no {right!r}")
    text = text.replace(right, wrong)
    folder = FOLDER / "ptx" / "planted" / hashlib.sha256(text.encode()).hexdigest()[:16]
    (folder / header).parent.mkdir(parents=True, exist_ok=True)
    (folder / header).write_text(text)
    ptx = folder / f"{source.stem}.ptx"
    command = [nvcc(), "-ptx", "-arch=sm_90a", "-I", folder, *NVCC_FLAGS, source, "-o", ptx]
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(ran.stderr)
    kernels = translate(ptx)
    compile_kernels(kernels)
    return write_list(kernels, rest="some")


def translate(ptx: Path) -> list[Translated]:
    """The kernels of a file. Writes their C++ to OBJECTS, unless that is there already."""
    index = ptx.with_suffix(".json")
    key = hashlib.sha256(_translator() + ptx.read_bytes()).hexdigest()
    if index.exists():
        known = json.loads(index.read_text())
        if known["key"] == key:
            return [Translated(**kernel) for kernel in known["kernels"]]
    OBJECTS.mkdir(parents=True, exist_ok=True)
    module = parse(ptx)
    names = [
        f"{ptx.stem}.cu: {name}" if ANONYMOUS in name else name
        for name in demangle([kernel.name for kernel in module.kernels])
    ]
    kernels = []
    for kernel, name in zip(module.kernels, names, strict=True):
        text = translate_kernel(module, kernel)
        hash = hashlib.sha256(text.encode()).hexdigest()[:16]
        source = OBJECTS / f"{hash}.cpp"
        if not source.exists():
            source.write_text(text)
        kernels.append(Translated(name, str(ptx), kernel.line, hash))
    index.write_text(json.dumps({"key": key, "kernels": [asdict(kernel) for kernel in kernels]}))
    return kernels


@cache
def _translator() -> bytes:
    """All that the translation depends on, besides the PTX."""
    return b"".join(path.read_bytes() for path in sorted((HERE / "ptx").glob("*.py")))


def compile_kernels(kernels: list[Translated]) -> None:
    edges = [f"compiler = {compiler()}", f"flags = {shlex.join(FLAGS)}", RULES]
    sources = sorted(OBJECTS.glob("*.cpp"))
    edges += [f"build {path.stem}.so: kernel {path.name}" for path in sources]
    wanted = sorted({kernel.object.name for kernel in kernels})
    run_ninja(OBJECTS, "\n".join(edges) + "\n", *map(Path, wanted))


def write_list(kernels: list[Translated], rest: str = "all") -> Path:
    """The list for the program (ptx/runtime/launch.h). `rest`: "some" lets other kernels run as g++
    compiled them."""
    if len({kernel.name for kernel in kernels}) < len(kernels):
        raise RuntimeError("two kernels have one name")
    lines = [f"{k.name}\t{k.object}\t{k.file}\t{k.line}" for k in kernels]
    text = "\n".join([rest, *lines]) + "\n"
    path = OBJECTS / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.list"
    path.write_text(text)
    return path


def demangle(names: list[str]) -> list[str]:
    command = ["c++filt", *names]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return text.splitlines()


def short_name(name: str) -> str:
    """As people write it: `linear_kernel<BF16, float, 3, 1, false>`."""
    name = re.sub(r"lampo::(cuda::)?|\(anonymous namespace\)::|^(\w+\.cu: )?void ", "", name)
    name = re.sub(r"\([\w:]+\)(?=[\w-])", "", name)  # types of template arguments
    return re.sub(r"\(.*\)$", "", name)
