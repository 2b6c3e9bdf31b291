# SPDX-License-Identifier: Apache-2.0
"""``lampo doctor``: kernels, hardware and versions, with the reasons."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from lampo.cli.job import Job
from lampo.cli.report import bytes_text
from lampo.cli.terminal import print_table
from lampo.runtime.device import CudaDevice

Row = tuple[str, str]


def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> Job:
    """Show versions, CPU and its kernels, threads, CUDA, memory and the cache, and why each is so.

    Nothing here fails: what cannot be found out is told with the reason.
    """
    return functools.partial(_run, as_json)


def _run(as_json: bool) -> int:
    from lampo.cli.probes import probe_all

    found = probe_all()
    if as_json:
        print(json.dumps(found, indent=2, default=str))
        return 0
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in rows(found):
        table.add_row(Text(name), Text(value))
    print_table(table, fold=True)
    return 0


def rows(found: dict[str, Any]) -> Iterator[Row]:
    """The findings as (name, value) lines."""
    views = {
        "versions": _versions,
        "platform": _platform,
        "memory": _memory,
        "isa": _isa,
        "threads": _threads,
        "load": _load,
        "cuda": _cuda,
        "torch": _torch,
        "ops": _ops,
        "cache": _cache,
    }
    for name, view in views.items():
        values = found[name]
        try:
            yield from view(values)
        except KeyError:  # a section without its values has the reason
            yield name, f"unknown: {values.get('error', 'no reason given')}"


def _versions(v: dict[str, Any]) -> Iterator[Row]:
    yield "lampo", f"{v['lampo']} on Python {v['python']}"
    others = [f"{name} {value or 'missing'}" for name, value in list(v.items())[2:]]
    yield "packages", ", ".join(others)


def _platform(v: dict[str, Any]) -> Iterator[Row]:
    yield "system", v["system"]
    yield "CPU", f"{v['cpu']}, {v['logical_cpus']} logical CPUs"


def _memory(v: dict[str, Any]) -> Iterator[Row]:
    free = "unknown" if v["available"] is None else bytes_text(v["available"])
    limit = v["cgroup_limit"]
    suffix = "" if limit is None else f", cgroup limit {bytes_text(limit)}"
    yield "memory", f"{free} of {bytes_text(v['total'])} available{suffix}"


def _isa(v: dict[str, Any]) -> Iterator[Row]:
    listed = f"compiled: {', '.join(v['compiled'])}; runnable here: {', '.join(v['runnable'])}"
    chosen = f"none: {v['error']}" if "error" in v else f"{v['chosen']}: {v['why']}"
    yield "CPU kernels", f"{chosen} ({listed})"


def _threads(v: dict[str, Any]) -> Iterator[Row]:
    quota = "no quota" if v["cgroup_cpus"] is None else f"a quota of {v['cgroup_cpus']:g} CPUs"
    usable = f"{v['usable_cores']} cores usable, {v['affinity_cpus']} CPUs in the mask, {quota}"
    chosen = f"none: {v['error']}" if "error" in v else f"{v['chosen']}: {v['why']}"
    yield "threads", f"{chosen} ({usable})"


def _load(v: dict[str, Any]) -> Iterator[Row]:
    taken = f"other processes take {v['others']:.1f} of {v['cores']} CPUs"
    yield "load", f"{taken}: measurements will be too slow" if v["busy"] else taken


def _cuda(v: dict[str, Any]) -> Iterator[Row]:
    if v["usable"]:
        yield "CUDA", f"yes: runtime {v['runtime_version']}, driver {v['driver_version']}"
    else:
        yield "CUDA", f"no: {v['why']}"
    yield "CUDA build", f"{'compiled' if v['compiled'] else 'not compiled'}: {v['decision']}"
    for device in v["devices"]:
        major, minor = device["compute_capability"]
        free = device["memory_free"]
        memory = bytes_text(device["memory_total"])
        if free is not None:
            memory = f"{bytes_text(free)} of {memory} free"
        kernels = device["why"] or f"kernels: {CudaDevice(**device).kernels}"
        name = f"{device['name']}, {major}.{minor}, {device['num_sms']} SMs"
        yield f"cuda:{device['index']}", f"{name}, {memory}; {kernels}"


def _torch(v: dict[str, Any]) -> Iterator[Row]:
    build = f"CUDA {v['cuda']}" if v["cuda"] else "no CUDA"
    yield "torch", f"{v['version']}, built with {build}"


def _ops(v: dict[str, Any]) -> Iterator[Row]:
    if "error" in v:
        raise KeyError("error")
    groups: dict[tuple[str, str], list[str]] = {}
    for name, op in v.items():
        groups.setdefault((op["variant"], op["why"]), []).append(name)
    for (variant, why), names in groups.items():
        yield "ops", f"{variant}: {', '.join(names)} ({why})"


def _cache(v: dict[str, Any]) -> Iterator[Row]:
    yield "cache", f"{v['folder']} ({v['why']})"
    path = v["default_model_path"]
    yield "default model", path or f"{v['default_model']} is not cached; `lampo pull` fetches it"
