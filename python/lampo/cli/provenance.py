# SPDX-License-Identifier: Apache-2.0
"""The provenance of a measurement: machine, versions, commit, command."""

from __future__ import annotations

import contextlib
import datetime
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lampo.cli import probes


def provenance() -> dict[str, Any]:
    return {
        "command": command(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "platform": {k: v for k, v in probes.machine().items() if k != "python"},
        "memory": probes.memory(),
        "isa": probes.isa(),
        "threads": probes.threads(),
        "versions": {**probes.versions(), **_installed("fastapi", "uvicorn", "pydantic")},
    }


def _installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def command() -> str:
    """The command line, without the folders of this machine."""
    words = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]
    return shlex.join(["lampo", *words])


def commit() -> str | None:
    """Commit of the source tree, "+changes" if files differ; None without a tree."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").exists() or not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        name = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "python")
    except OSError:
        return None
    return f"{name}+changes" if name and changed else name or None
