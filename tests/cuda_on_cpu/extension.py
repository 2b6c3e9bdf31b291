# SPDX-License-Identifier: Apache-2.0
"""The ops on the CUDA kernels without a GPU, for Python.

The kernels are compiled for the executor, without sanitizers, into a module whose functions are
those of lampo._C. It takes tensors of device.py for a GPU's.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

from cuda_on_cpu import build

BINDINGS = ("attention", "elementwise", "linear", "sampling", "tensor_arg")


def build_extension(folder: Path) -> ModuleType:
    """Compiles it, unless the folder has it from the present sources, and imports it."""
    target = folder / f"cuda_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    made = target.stat().st_mtime if target.exists() else 0
    files = [*(build.ROOT / "csrc").rglob("*.*"), *build.HERE.rglob("*.[ch]*")]
    if any(file.stat().st_mtime > made for file in files):
        _build(folder, target)
    spec = importlib.util.spec_from_file_location("cuda_kernels", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(folder: Path, target: Path) -> None:
    sources = [build.ROOT / "csrc/bindings" / f"{name}.cpp" for name in BINDINGS]
    sources += [build.HERE / "extension.cpp", build.HERE / "calls/cpu_absent.cpp"]
    sources += [*build.KERNELS, *build.EXECUTOR, *build.OPS]
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-O1", "-fPIC", "-fvisibility=hidden", *build.EXECUTOR_FLAGS]
    flags += [flag for path in includes for flag in ("-isystem", path)]
    build.link(build.compile_all(sources, folder, flags), target, ["-shared"])
