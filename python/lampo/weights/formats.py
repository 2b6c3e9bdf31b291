# SPDX-License-Identifier: Apache-2.0
"""Quantized matrices; GGUF's tensor types: block sizes, tensors in blocks, dequantization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_CHUNK_ELEMENTS = 1 << 18  # bounds the temporaries of a dequantization


@dataclass(frozen=True)
class GGMLType:
    """One of GGUF's tensor types: `block_size` elements stored in `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int
    dtype: str | None = None  # torch's name of it; None: quantized

    def row_bytes(self, columns: int) -> int:
        return columns // self.block_size * self.block_bytes


# GGUF's types by their number in the file; all others are refused.
GGML_TYPES = {
    0: GGMLType("f32", 1, 4, "float32"),
    1: GGMLType("f16", 1, 2, "float16"),
    2: GGMLType("q4_0", 32, 18),
    3: GGMLType("q4_1", 32, 20),
    6: GGMLType("q5_0", 32, 22),
    7: GGMLType("q5_1", 32, 24),
    8: GGMLType("q8_0", 32, 34),
    10: GGMLType("q2_k", 256, 84),
    11: GGMLType("q3_k", 256, 110),
    12: GGMLType("q4_k", 256, 144),
    13: GGMLType("q5_k", 256, 176),
    14: GGMLType("q6_k", 256, 210),
    16: GGMLType("iq2_xxs", 256, 66),
    17: GGMLType("iq2_xs", 256, 74),
    18: GGMLType("iq3_xxs", 256, 98),
    19: GGMLType("iq1_s", 256, 50),
    20: GGMLType("iq4_nl", 32, 18),
    21: GGMLType("iq3_s", 256, 110),
    22: GGMLType("iq2_s", 256, 82),
    23: GGMLType("iq4_xs", 256, 136),
    29: GGMLType("iq1_m", 256, 56),
    30: GGMLType("bf16", 1, 2, "bfloat16"),
    34: GGMLType("tq1_0", 256, 54),
    35: GGMLType("tq2_0", 256, 66),
    39: GGMLType("mxfp4", 32, 17),
    40: GGMLType("nvfp4", 64, 36),
}
_BY_NAME = {t.name: (number, t) for number, t in GGML_TYPES.items()}


def ggml_type(name: str) -> tuple[int, GGMLType]:
    """A type by its name, and its number in a file."""
    return _BY_NAME[name]


@dataclass(frozen=True)
class Blocks:
    """A matrix in a packed format, in the order of files: the arguments of ops.pack_weight."""

    blocks: torch.Tensor  # [rows, row_bytes] uint8
    format: str
    shape: tuple[int, int]


class CodedMatrix(ABC):
    """A matrix in the codes of a file.

    Attributes:
        format: its kind, for messages.
        shape: (rows, columns).
        nbytes: in the file.
    """

    # Fields of subclasses could not override real properties.
    if TYPE_CHECKING:

        @property
        def format(self) -> str: ...
        @property
        def shape(self) -> tuple[int, int]: ...
        @property
        def nbytes(self) -> int: ...

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The values of some rows: [stop - start, columns] float32."""

    def packed(self, formats: Collection[str]) -> Blocks | None:
        """The matrix in one of these packed formats; None if none holds exactly its values."""
        return None

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The matrix: [rows, columns] in `dtype`, float32 if absent."""
        import torch

        rows, columns = self.shape
        out = torch.empty(rows, columns, dtype=dtype or torch.float32)
        step = max(1, _CHUNK_ELEMENTS // columns)
        for start in range(0, rows, step):
            out[start : start + step] = self.rows(start, min(start + step, rows))
        return out


@dataclass(frozen=True)
class QuantizedTensor(CodedMatrix):
    """A matrix kept in GGUF's blocks along each row.

    Attributes:
        blocks: [rows, row_bytes] uint8, contiguous.
        format: a quantized type, such as "q4_k".
        shape: (rows, columns).
    """

    blocks: torch.Tensor
    format: str
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        import torch

        _, ggml_type = _BY_NAME.get(self.format, (0, GGML_TYPES[0]))
        if ggml_type.dtype is not None:
            raise ValueError(f"format: expected one of GGUF's block types, got {self.format!r}")
        rows, columns = self.shape
        if columns % ggml_type.block_size:
            raise ValueError(
                f"columns: expected a multiple of {ggml_type.block_size}, got {columns}"
            )
        expected = (rows, ggml_type.row_bytes(columns))
        if tuple(self.blocks.shape) != expected or self.blocks.dtype != torch.uint8:
            got = f"{tuple(self.blocks.shape)} {self.blocks.dtype}"
            raise ValueError(f"blocks: expected {expected} uint8, got {got}")

    @property
    def nbytes(self) -> int:
        return self.blocks.numel()

    def packed(self, formats: Collection[str]) -> Blocks | None:
        return Blocks(self.blocks, self.format, self.shape) if self.format in formats else None

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """The values of some rows, by the `gguf` package."""
        import torch
        from gguf import quants  # lazy: takes 0.3 s, and most files do not need it
        from gguf.constants import GGMLQuantizationType

        kind = GGMLQuantizationType(_BY_NAME[self.format][0])
        with np.errstate(all="ignore"):  # scales may be inf or NaN in a broken file
            return torch.from_numpy(quants.dequantize(self.blocks[start:stop].numpy(), kind))
