# SPDX-License-Identifier: Apache-2.0
"""GGUF's tensor types: block sizes, the packed formats of the kernels, dequantization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

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


# Supported types by their number in the file; all others are refused.
GGML_TYPES = {
    0: GGMLType("f32", 1, 4, "float32"),
    1: GGMLType("f16", 1, 2, "float16"),
    2: GGMLType("q4_0", 32, 18),
    3: GGMLType("q4_1", 32, 20),
    6: GGMLType("q5_0", 32, 22),
    7: GGMLType("q5_1", 32, 24),
    8: GGMLType("q8_0", 32, 34),
    12: GGMLType("q4_k", 256, 144),
    13: GGMLType("q5_k", 256, 176),
    14: GGMLType("q6_k", 256, 210),
    30: GGMLType("bf16", 1, 2, "bfloat16"),
}
PACKED_FORMATS = ("q4_0", "q4_1", "q8_0")
_BY_NAME = {t.name: (number, t) for number, t in GGML_TYPES.items()}


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix kept in GGUF blocks of 32 elements along each row.

    q4_0: f16 d, 16 bytes of nibbles; w = d (q - 8).
    q4_1: f16 d, f16 m, 16 bytes of nibbles; w = d q + m.
    q8_0: f16 d, 32 signed bytes; w = d q.
    Nibbles: byte j holds element j in its low half, element j + 16 in its high half.

    Attributes:
        blocks: [rows, row_bytes] uint8, contiguous.
        format: "q4_0", "q4_1" or "q8_0".
        shape: (rows, columns).
    """

    blocks: torch.Tensor
    format: str
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        import torch

        if self.format not in PACKED_FORMATS:
            raise ValueError(f"format: expected one of {PACKED_FORMATS}, got {self.format!r}")
        rows, columns = self.shape
        ggml_type = _BY_NAME[self.format][1]
        if columns % ggml_type.block_size:
            raise ValueError(f"columns: expected a multiple of 32, got {columns}")
        expected = (rows, ggml_type.row_bytes(columns))
        if tuple(self.blocks.shape) != expected or self.blocks.dtype != torch.uint8:
            got = f"{tuple(self.blocks.shape)} {self.blocks.dtype}"
            raise ValueError(f"blocks: expected {expected} uint8, got {got}")

    @property
    def nbytes(self) -> int:
        return self.blocks.numel()

    def dequantize(self) -> torch.Tensor:
        """The matrix in f32: [rows, columns]."""
        import torch

        out = np.empty(self.shape, dtype=np.float32)
        elements = out.reshape(-1, 32)
        blocks = self.blocks.numpy().reshape(elements.shape[0], -1)
        step = _CHUNK_ELEMENTS // 32
        with np.errstate(all="ignore"):  # scales may be inf or NaN in a broken file
            for start in range(0, blocks.shape[0], step):
                _unpack(blocks[start : start + step], self.format, elements[start : start + step])
        return torch.from_numpy(out)


def _unpack(blocks: npt.NDArray[np.uint8], format: str, out: npt.NDArray[np.float32]) -> None:
    """[blocks, block_bytes] to [blocks, 32], in place."""

    def half(start: int) -> npt.NDArray[np.float32]:
        return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)

    if format == "q8_0":
        out[:] = blocks[:, 2:].view(np.int8)
    else:
        nibbles = blocks[:, -16:]
        out[:, :16] = nibbles & 15
        out[:, 16:] = nibbles >> 4
    if format == "q4_0":
        out -= 8
    out *= half(0)
    if format == "q4_1":
        out += half(2)


def dequantize_blocks(
    data: torch.Tensor, ggml_type: GGMLType, shape: tuple[int, ...]
) -> torch.Tensor:
    """Dequantizes any quantized type, by the `gguf` package: f32 tensor of `shape`.

    data: [bytes] uint8.
    """
    import torch
    from gguf import quants  # lazy: takes 0.3 s, and most files do not need it
    from gguf.constants import GGMLQuantizationType

    kind = GGMLQuantizationType(_BY_NAME[ggml_type.name][0])
    columns = shape[-1]
    rows = math.prod(shape[:-1])
    source = data.numpy().reshape(rows, ggml_type.row_bytes(columns))
    out = np.empty((rows, columns), dtype=np.float32)
    step = max(1, _CHUNK_ELEMENTS // columns)
    with np.errstate(all="ignore"):  # scales may be inf or NaN in a broken file
        for start in range(0, rows, step):
            out[start : start + step] = quants.dequantize(source[start : start + step], kind)
    return torch.from_numpy(out).view(shape)
