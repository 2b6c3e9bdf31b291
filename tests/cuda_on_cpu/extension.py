# SPDX-License-Identifier: Apache-2.0
"""A whole model on the CUDA kernels, without a GPU: lampo.ops calls csrc/cuda/, on the CPU.

The kernels are compiled for the executor, without sanitizers, into a module whose functions are
those of lampo._C. It takes CPU tensors for a device's.
"""

from __future__ import annotations

import importlib
import importlib.util
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import pytest

from cuda_on_cpu import build
from lampo import _C

BINDINGS = ("attention", "elementwise", "linear", "sampling", "tensor_arg")
MODULES = [
    f"lampo.ops.{name}"
    for name in ("activation", "attention", "kv_cache", "linear", "norm", "sampling")
]
HOST_ONLY = {"_pack_weight"}


def build_extension(folder: Path) -> ModuleType:
    """Compiles and imports it."""
    sources = [build.ROOT / "csrc/bindings" / f"{name}.cpp" for name in BINDINGS]
    sources += [build.HERE / "extension.cpp", build.HERE / "calls/cpu_absent.cpp"]
    sources += [*build.KERNELS, *build.EXECUTOR, *build.OPS]
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    flags = ["-O1", "-fPIC", "-fvisibility=hidden", *build.EXECUTOR_FLAGS]
    flags += [flag for path in includes for flag in ("-isystem", path)]
    target = folder / f"cuda_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    build.link(build.compile_all(sources, folder, flags), target, ["-shared"])
    spec = importlib.util.spec_from_file_location("cuda_kernels", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use_cuda_kernels(native: Any, patch: pytest.MonkeyPatch) -> None:
    """Makes lampo.ops call `native`, and ask it for the sizes of workspaces."""
    for module in map(importlib.import_module, MODULES):
        for name in vars(module).copy():
            function = getattr(native, name.removeprefix("_"), None)
            if name.startswith("_") and function is not None and name not in HOST_ONLY:
                patch.setattr(module, name, function)
    for name in vars(_C):
        if name.endswith("_workspace_size"):
            patch.setattr(_C, name, on_the_device(getattr(native, name)))


def on_the_device(size: Callable[..., int]) -> Callable[..., int]:
    """They name the device by its number, the CPU by -1."""

    def call(*args: Any) -> int:
        return size(*(0 if a == -1 else a for a in args))

    return call
