# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: hardware, versions, commit, one Markdown row per case.

>>> args = results.parser(__doc__).parse_args()
>>> report = results.Report("sample", ["shape", "us", "GB/s", "torch us", "ratio"], args)
>>> report.limit("read bandwidth, GB/s", 44.1)
>>> report.add({"shape": "64x128256", "us": 812.0, "ratio": 51.2}, time_us=series.summary(1e6))
>>> report.finish(mean_of="ratio")
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from lampo.bench import timing

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTIONS = ("lampo", "torch", "numpy", "transformers", "gguf", "flashinfer-python", "vllm")
ISA_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of all benchmarks; a script adds its own."""
    first_line = (description or "").strip().split("\n")[0]
    options = argparse.ArgumentParser(description=first_line)
    options.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    options.add_argument("--threads", type=int, default=2, help="worker threads (default: 2)")
    options.add_argument("--repeats", type=int, default=15, help="samples per case (default: 15)")
    options.add_argument("--quick", action="store_true", help="a few small cases")
    return options


def _first_match(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _output(*command: str) -> str:
    """A program's output; empty if it is not installed."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout.strip()


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores of this process, vector extensions, memory; the GPU if requested."""
    flags = _first_match("/proc/cpuinfo", "flags").split()
    flags += _first_match("/proc/cpuinfo", "Features").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_kb = _first_match("/proc/meminfo", "MemTotal").split()
    found: dict[str, Any] = {
        "cpu": _first_match("/proc/cpuinfo", "model name") or platform.processor(),
        "cpu family/model": "/".join(
            _first_match("/proc/cpuinfo", key) for key in ("cpu family", "model\t")
        ),
        "cores": cores,
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "memory_gb": round(int(memory_kb[0]) * 1024 / 1e9, 1) if memory_kb else None,
    }
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_properties(0)
        found["gpu"] = gpu.name
        found["gpu_memory_gb"] = round(gpu.total_memory / 1e9, 1)
        found["gpu_l2_mb"] = round(gpu.L2_cache_size / 1e6)
        found["gpu_sms"] = gpu.multi_processor_count
        query = "--query-gpu=driver_version,clocks.max.sm,clocks.max.memory"
        found["gpu_driver_and_clocks"] = _output(
            "nvidia-smi", "--id=0", query, "--format=csv,noheader"
        )
        found["cuda"] = torch.version.cuda
    return found


def versions() -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {' '.join(platform.libc_ver())}",
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Short hash of the tree that ran, "+changes" when tracked files differ from it.

    LAMPO_COMMIT replaces it in a copy of the tree without history.
    """
    if "LAMPO_COMMIT" in os.environ:
        return os.environ["LAMPO_COMMIT"]
    name = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output(
        "git", "status", "--porcelain", "--untracked-files=no", "--", "csrc", "python"
    )
    return (name or "unknown") + ("+changes" if changed else "")


def command() -> str:
    """The command line to repeat the run, without the directories of this machine."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}"]
    words += [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    return "python " + shlex.join(words)


def load() -> str:
    """CPUs that other processes take now, while this one sleeps: near 0 for a reliable run."""
    from lampo.runtime.machine_load import machine_load

    found = machine_load()
    if found is None:
        return "unknown"
    return f"{found.others:.1f} of {found.cores} CPUs{', busy' if found.busy else ''}"


def text(value: Any) -> str:
    """A table cell: three significant digits, whole numbers from 100 on, "-" for None."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"


class Report:
    """Prints the run as Markdown while it happens and writes it as JSON at the end."""

    def __init__(self, title: str, columns: list[str], options: argparse.Namespace) -> None:
        self.columns = columns
        self.path: Path | None = options.json
        self.cases: list[dict[str, Any]] = []
        self._header_printed = False
        self.document: dict[str, Any] = {
            "benchmark": title,
            "command": command(),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit(),
            "threads": options.threads,
            "load at start": load(),
            "hardware": hardware(getattr(options, "device", "cpu")),
            "versions": versions(),
            "limits": {},
            "checks": [],
            "notes": [],
            "columns": columns,
            "cases": self.cases,
        }
        print(f"## {title}\n")
        for key in ("command", "date", "commit", "threads", "load at start"):
            print(f"- {key}: {self.document[key]}")
        for key in ("hardware", "versions"):
            pairs = (f"{name} {value}" for name, value in self.document[key].items())
            print(f"- {key}: {', '.join(pairs)}")

    def limit(self, name: str, value: float | timing.Series) -> None:
        """A machine limit that this run measured, such as "read bandwidth, GB/s"."""
        if isinstance(value, timing.Series):
            self.document["limits"][name] = value.summary()
            value = value.median
        else:
            self.document["limits"][name] = value
        print(f"- limit: {name} {text(value)}")

    def check(self, sentence: str) -> None:
        """A correctness check that passed; call it before any timing."""
        self.document["checks"].append(sentence)
        print(f"- checked: {sentence}")

    def version(self, name: str, value: str) -> None:
        """A version that a peer's process reports."""
        self.document["versions"][name] = value
        print(f"- version: {name} {value}")

    def note(self, sentence: str) -> None:
        self.document["notes"].append(sentence)
        print(f"- note: {sentence}")

    def add(self, row: dict[str, Any], **details: Any) -> None:
        """One case: `row` has the printed columns ("-" if missing); `details` go to JSON."""
        if not self._header_printed:
            print("\n| " + " | ".join(self.columns) + " |")
            print("|" + "---|" * len(self.columns))
            self._header_printed = True
        unknown = set(row) - set(self.columns)
        if unknown:
            raise KeyError(f"no such column: {sorted(unknown)}")
        print("| " + " | ".join(text(row.get(name)) for name in self.columns) + " |", flush=True)
        self.cases.append({**row, **details})
        self._save()  # keeps the cases of an interrupted run

    def finish(self, mean_of: str | tuple[str, ...] = ()) -> None:
        """Prints the geometric mean of columns, and writes the JSON file if one is requested."""
        self.document["load at end"] = load()
        print(f"\n- load at end: {self.document['load at end']}\n")
        means = self.document["geometric_mean"] = {}
        for column in (mean_of,) if isinstance(mean_of, str) else mean_of:
            values = [case[column] for case in self.cases if case.get(column)]
            if values:
                means[column] = timing.geometric_mean(values)
                print(f"geometric mean of {column}, {len(values)} cases: {text(means[column])}")
        self._save()

    def _save(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.document, indent=1, ensure_ascii=False) + "\n")
