# SPDX-License-Identifier: Apache-2.0
"""Reading ranges of a file into memory.

Files are not mapped: if a mapped file is cut short, the next access ends the process (SIGBUS).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        """`nbytes` bytes from `start` on, in aligned memory of their own: [nbytes] uint8.

        Raises:
            ValueError: the file has been cut short since it was opened.
        """
        import torch

        tensor = torch.empty(nbytes, dtype=torch.uint8)
        self._read_into(memoryview(tensor.numpy().data), start)
        return tensor

    def read_bytes(self, start: int, nbytes: int) -> bytes:
        """The same as bytes, for headers: without torch."""
        data = bytearray(nbytes)
        self._read_into(memoryview(data), start)
        return bytes(data)

    def _read_into(self, rest: memoryview, start: int) -> None:
        nbytes = len(rest)
        self._file.seek(start)
        while rest:
            count = self._file.readinto(rest[:_MAX_READ])
            if not count:
                raise ValueError(
                    f"{self.path}: it has been cut short: {len(rest)} of {nbytes} bytes from "
                    f"{start} on are missing"
                )
            rest = rest[count:]

    def close(self) -> None:
        self._file.close()
