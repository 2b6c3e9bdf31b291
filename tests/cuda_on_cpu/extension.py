# SPDX-License-Identifier: Apache-2.0
"""The ops on the CUDA kernels without a GPU, for Python.

The kernels are compiled for the executor, without sanitizers, into a module whose functions are
those of lampo._C (build.py). It takes tensors of device.py for a GPU's.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

from cuda_on_cpu.build import EXTENSION


def import_extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_kernels", EXTENSION)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
