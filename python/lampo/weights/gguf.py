# SPDX-License-Identifier: Apache-2.0
"""GGUF files: tensors by name, packed formats kept packed."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lampo.weights.formats import QuantizedTensor
from lampo.weights.gguf_header import parse_header
from lampo.weights.reading import OpenFile

if TYPE_CHECKING:
    import torch

_MAX_FREQ_FACTORS = 4096
_FREQ_FACTORS = {"rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"}


class GGUFFile:
    """An open GGUF file: its header, and its tensors by their GGUF names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = OpenFile(path)
        self.nbytes = self._file.nbytes
        try:
            self.header = parse_header(self._file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.header.metadata

    @property
    def kinds(self) -> Mapping[str, tuple[int, int | None]]:
        """The types of the metadata: :attr:`GGUFHeader.kinds`."""
        return self.header.kinds

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.header.tensors.items()}

    def freq_factors(self) -> dict[str, tuple[float, ...]]:
        """The content of rope_freqs.weight and the like: divisors of the rotary frequencies."""
        found = {}
        for name in _FREQ_FACTORS & self.header.tensors.keys():
            info = self.header.tensors[name]
            if info.type.name != "f32" or len(info.shape) != 1 or info.shape[0] > _MAX_FREQ_FACTORS:
                got = f"{info.type.name} {info.shape}"
                raise ValueError(f"{self.path}: tensor {name}: expected few f32, got {got}")
            data = self._file.read_bytes(info.offset, info.nbytes)
            found[name] = struct.unpack(f"<{info.shape[0]}f", data)
        return found

    def load(self, name: str) -> torch.Tensor | QuantizedTensor:
        """The tensor, in memory of its own. Quantized matrices of experts lie one above the other.

        Raises:
            ValueError: the file has been cut short.
        """
        import torch

        info = self.header.tensors[name]
        raw = self._file.read(info.offset, info.nbytes)
        if info.type.dtype is not None:
            return raw.view(getattr(torch, info.type.dtype)).view(info.shape)
        rows, columns = math.prod(info.shape[:-1]), info.shape[-1]
        blocks = QuantizedTensor(raw.view(rows, -1), info.type.name, (rows, columns))
        return blocks if len(info.shape) > 1 else blocks.dequantize().view(info.shape)
