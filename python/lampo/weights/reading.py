# SPDX-License-Identifier: Apache-2.0
"""Reading ranges of a file into memory.

Files are not mapped: if a mapped file is cut short, the next access ends the process (SIGBUS).
"""

from __future__ import annotations

from pathlib import Path

import torch

_MAX_READ = 1 << 30  # Linux reads at most 2 GiB at once


class OpenFile:
    """A file that stays open, so that one that takes its name meanwhile is not read.

    Attributes:
        path: the name in errors.
        nbytes: the size when it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self.nbytes = self._file.seek(0, 2)

    def read(self, start: int, nbytes: int) -> torch.Tensor:
        """`nbytes` bytes from `start` on, in memory of their own: [nbytes] uint8.

        Raises:
            ValueError: the file has been cut short since it was opened.
        """
        tensor = torch.empty(nbytes, dtype=torch.uint8)
        self._file.seek(start)
        rest = memoryview(tensor.numpy().data)
        while rest:
            count = self._file.readinto(rest[:_MAX_READ])
            if not count:
                raise ValueError(
                    f"{self.path}: it has been cut short: {len(rest)} of {nbytes} bytes from "
                    f"{start} on are missing"
                )
            rest = rest[count:]
        return tensor

    def close(self) -> None:
        self._file.close()
