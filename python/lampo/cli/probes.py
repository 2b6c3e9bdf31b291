# SPDX-License-Identifier: Apache-2.0
"""The probes of `lampo doctor`; each returns plain values."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lampo.runtime.machine import cpu_name
from lampo.runtime.machine_load import LoadMeter

_PACKAGES = """
    torch numpy tokenizers safetensors gguf jinja2 huggingface-hub typer rich
"""


def probe_all() -> dict[str, Any]:
    """All sections; a failed one has `error`, the reason."""
    probes: dict[str, Callable[[], dict[str, Any]]] = {
        "versions": versions,
        "platform": machine,
        "memory": memory,
        "isa": isa,
        "threads": threads,
        "cuda": cuda,
        "torch": torch_build,
        "ops": ops,
        "cache": cache,
    }
    meter = LoadMeter()
    found = {name: _guarded(probe) for name, probe in probes.items()}
    # Last, as it is the load while the others took their time.
    return found | {"load": _guarded(lambda: load(meter))}


def _guarded(probe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return probe()
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        return {"error": f"{type(error).__name__}: {text}"}


def versions() -> dict[str, Any]:
    from importlib import metadata

    import lampo

    found: dict[str, Any] = {"lampo": lampo.__version__, "python": platform.python_version()}
    for name in _PACKAGES.split():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "logical_cpus": os.cpu_count(),
        "python": sys.executable,
    }


def memory() -> dict[str, Any]:
    page = os.sysconf("SC_PAGE_SIZE")
    found = {
        "total": os.sysconf("SC_PHYS_PAGES") * page,
        "available": _available_memory(),
    }
    limit = _read_words("/sys/fs/cgroup/memory.max")
    found["cgroup_limit"] = int(limit[0]) if limit and limit[0].isdigit() else None
    return found


def isa() -> dict[str, Any]:
    from lampo import _C

    forced = os.environ.get("LAMPO_CPU_ISA")
    found: dict[str, Any] = {"compiled": _C.compiled_isas(), "runnable": _C.runnable_isas()}
    try:
        found["chosen"] = _C.cpu_isa()
        found["why"] = f"LAMPO_CPU_ISA={forced}" if forced else "the best that this CPU can run"
    except (ValueError, RuntimeError) as error:
        found["error"] = str(error)
    return found


def threads() -> dict[str, Any]:
    from lampo import _C

    forced = os.environ.get("LAMPO_NUM_THREADS")
    quota = _C.cgroup_cpus() or None
    found: dict[str, Any] = {
        "usable_cores": _C.usable_cores(),
        "affinity_cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else None,
        "cgroup_cpus": quota,
    }
    try:
        found["chosen"] = _C.num_threads()
    except ValueError as error:
        return found | {"error": str(error)}
    if forced:
        why = f"LAMPO_NUM_THREADS={forced}"
    elif quota is not None and quota <= found["usable_cores"]:
        why = "the CPU quota of this cgroup"
    else:
        why = "the physical cores that this process may use"
    return found | {"why": why}


def load(meter: LoadMeter) -> dict[str, Any]:
    found = meter.load()
    if found is None:
        raise OSError("this system does not tell")
    return dataclasses.asdict(found) | {"busy": found.busy}


def cuda() -> dict[str, Any]:
    from lampo.runtime.device import cuda_info

    info = cuda_info(measure_free=True)
    return dataclasses.asdict(info) | {"usable": info.usable}


def torch_build() -> dict[str, Any]:
    import torch

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "cuda_available": torch.cuda.is_available(),
        "threads": torch.get_num_threads(),
    }


def ops() -> dict[str, Any]:
    """Op of lampo.ops -> kernel for CPU tensors, where models run."""
    from lampo import _C
    from lampo import ops as lampo_ops

    chosen = _C.cpu_isa()
    forced = os.environ.get("LAMPO_CPU_ISA")
    why = f"LAMPO_CPU_ISA={forced}" if forced else f"{chosen} is the best that this CPU can run"
    names = [n for n in lampo_ops.__all__ if hasattr(_C, n) and hasattr(_torch_ops(), n)]
    return {name: {"variant": f"cpu {chosen}", "why": why} for name in names}


def cache() -> dict[str, Any]:
    from lampo.weights import DEFAULT_MODEL
    from lampo.weights.default_model import cache_folder, cached_default_model

    cached = cached_default_model()
    return {
        "folder": str(cache_folder()),
        "why": "LAMPO_CACHE" if os.environ.get("LAMPO_CACHE") else "the user's cache folder",
        "default_model": DEFAULT_MODEL,
        "default_model_path": None if cached is None else str(cached),
    }


def _torch_ops() -> Any:
    import torch

    return torch.ops.lampo


def _available_memory() -> int | None:
    for line in _read_lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _read_words(path: str) -> list[str]:
    lines = _read_lines(path)
    return lines[0].split() if lines else []
