# SPDX-License-Identifier: Apache-2.0
"""Reads weights from disk into the system's page cache in the background."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

from lampo.weights.shard_names import shard_names

_MOST_BYTES = 1 << 30  # more than a disk delivers while torch is imported


def read_ahead(path: Path) -> threading.Thread | None:
    """Starts reading a model's weights and returns at once; errors are left to the loader.

    Args:
        path: as for `load_checkpoint`.

    Returns:
        the thread, which need not be joined; None if the system does not support this.
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
            sorted(path.glob("*.safetensors")) or sorted(path.glob("*.gguf"))
            if folder
            else [path.with_name(name) for name in shard_names(path.name)]
        )
        for name in filter(Path.is_file, files):
            with name.open("rb") as file:
                # One system call that releases the GIL and copies nothing.
                left -= os.sendfile(nowhere.fileno(), file.fileno(), 0, left)
            if left <= 0:
                break
