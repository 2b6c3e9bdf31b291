# SPDX-License-Identifier: Apache-2.0
"""GGUF files: tensors as zero-copy views of the mapped file, packed formats kept packed."""

from __future__ import annotations

import logging
import math
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lampo.weights.formats import PACKED_FORMATS, GGMLType, QuantizedTensor, dequantize_blocks
from lampo.weights.gguf_header import parse_header

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("lampo")

_MAX_FREQ_FACTORS = 4096


class GGUFFile:
    """A mapped GGUF file: its header, and its tensors by their GGUF names.

    The mapping is never closed explicitly: torch.frombuffer keeps a reference to it, so it ends
    with the last tensor that views it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.nbytes = file.seek(0, 2)
            if self.nbytes < 24:
                raise ValueError(f"{path}: not a GGUF file: it has only {self.nbytes} bytes")
            self._data = _map_private(file.fileno(), self.nbytes)
        self.header = parse_header(path, self._data)
        self._announced: set[str] = set()

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.header.metadata

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.header.tensors.items()}

    def freq_factors(self) -> tuple[float, ...] | None:
        """The content of rope_freqs.weight: divisors of the rotary frequencies."""
        info = self.header.tensors.get("rope_freqs.weight")
        if info is None:
            return None
        if info.type.name != "f32" or len(info.shape) != 1 or info.shape[0] > _MAX_FREQ_FACTORS:
            got = f"{info.type.name} {info.shape}"
            raise ValueError(f"{self.path}: tensor rope_freqs.weight: expected few f32, got {got}")
        factors = np.frombuffer(self._data, "<f4", info.shape[0], info.offset)
        return tuple(factors.tolist())

    def load(self, name: str) -> torch.Tensor | QuantizedTensor:
        import torch

        info = self.header.tensors[name]
        if info.type.dtype is not None:
            dtype, count = getattr(torch, info.type.dtype), math.prod(info.shape)
            flat = torch.frombuffer(self._data, dtype=dtype, count=count, offset=info.offset)
            return flat.view(info.shape)
        raw = torch.frombuffer(self._data, dtype=torch.uint8, count=info.nbytes, offset=info.offset)
        if info.type.name in PACKED_FORMATS and len(info.shape) == 2:
            rows, columns = info.shape
            return QuantizedTensor(raw.view(rows, -1), info.type.name, (rows, columns))
        self._announce(info.type)
        return dequantize_blocks(raw, info.type, info.shape)

    def _announce(self, ggml_type: GGMLType) -> None:
        """Warns once per format that it is dequantized, with the memory that takes."""
        if ggml_type.name in self._announced:
            return
        self._announced.add(ggml_type.name)
        same = [t for t in self.header.tensors.values() if t.type is ggml_type]
        logger.warning(
            "%s: %s dequantized to f32 at load: %d bytes become %d",
            ggml_type.name.upper(),
            "1 tensor is" if len(same) == 1 else f"{len(same)} tensors are",
            sum(t.nbytes for t in same),
            sum(4 * math.prod(t.shape) for t in same),
        )

    def release(self, name: str) -> None:
        """Returns the tensor's pages to the system; they are read again on the next access."""
        info = self.header.tensors[name]
        start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)


def _map_private(fileno: int, nbytes: int) -> mmap.mmap:
    """Maps a file copy-on-write: writable memory for torch, and no write reaches the file."""
    if sys.platform == "linux":
        # Without MAP_NORESERVE (missing in `mmap`), files larger than the memory are refused.
        flags = mmap.MAP_PRIVATE | 0x4000
        return mmap.mmap(fileno, nbytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(fileno, nbytes, access=mmap.ACCESS_COPY)
