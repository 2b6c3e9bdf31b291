# SPDX-License-Identifier: Apache-2.0
"""Brings weights from the disk into the system's cache while something else is done."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

_MOST_BYTES = 1 << 30  # more than a disk delivers while torch is imported


def read_ahead(path: Path) -> threading.Thread | None:
    """Starts reading a model's weights and returns at once; whoever opens them finds the errors.

    Args:
        path: as for `load_checkpoint`.

    Returns:
        the thread, which nobody has to wait for; None where the system has no way to do this.
    """
    if sys.platform != "linux":
        return None
    thread = threading.Thread(target=_read, args=(path,), daemon=True)
    thread.start()
    return thread


def _read(path: Path) -> None:
    left = _MOST_BYTES
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        folder = path.is_dir()
        files = (
            sorted(path.glob("*.safetensors")) or sorted(path.glob("*.gguf")) if folder else [path]
        )
        for name in filter(Path.is_file, files):
            with name.open("rb") as file:
                # One system call, in which Python's lock is free and nothing is copied.
                left -= os.sendfile(nowhere.fileno(), file.fileno(), 0, left)
            if left <= 0:
                break
