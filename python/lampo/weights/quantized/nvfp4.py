# SPDX-License-Identifier: Apache-2.0
"""NVFP4, as compressed-tensors stores it: E2M1 codes with an E4M3 scale for each 16 of a row.

    weight_packed        U8 [out, in / 2]: the lower four bits of byte i are code 2 i
    weight_scale         F8_E4M3 [out, in / 16]
    weight_global_scale  F32 [1]

    w = code weight_scale / weight_global_scale

The reciprocal of the global scale is rounded to float32, once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lampo.weights.formats import Blocks, CodedMatrix
from lampo.weights.quantized.method import Parts
from lampo.weights.quantized.mxfp4 import halves_from_neighbours

if TYPE_CHECKING:
    import torch

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class NVFP4Matrix(CodedMatrix):
    """``w[n, k] = factor * scales[n, k / 16] * codes[n, k]``.

    Attributes:
        pairs: [rows, columns / 2] uint8.
        scales: [rows, columns / 16] float8_e4m3fn.
        factor: [] float32.
    """

    pairs: torch.Tensor
    scales: torch.Tensor
    factor: torch.Tensor
    format: str = "NVFP4"

    @property
    def nbytes(self) -> int:
        return self.pairs.numel() + self.scales.numel() + 4

    @property
    def shape(self) -> tuple[int, int]:
        rows, half = self.pairs.shape
        return rows, 2 * half

    def rows(self, start: int, stop: int) -> torch.Tensor:
        import torch

        pairs = self.pairs[start:stop]
        values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
        codes = values[torch.stack([pairs & 15, pairs >> 4], -1).flatten(1).int()]
        return codes * (self.factor * self.scales[start:stop].float()).repeat_interleave(16, 1)

    def packed(self, formats: Collection[str]) -> Blocks | None:
        import torch

        rows, columns = self.shape
        if "nvfp4_g128" not in formats or columns % 128:
            return None
        count = columns // 128
        factors = self.factor.repeat(rows, count, 1).view(torch.uint8)
        scales = self.scales.view(torch.uint8).view(rows, count, 8)
        pairs = halves_from_neighbours(self.pairs.view(rows, count, 4, 16)).flatten(2)
        blocks = torch.cat([factors, scales, pairs], 2).flatten(1)
        return Blocks(blocks, "nvfp4_g128", self.shape)


def nvfp4_shape(parts: Parts) -> tuple[int, int]:
    """The shape of checked NVFP4 tensors."""
    rows, half = parts.check("weight_packed", ["U8"], (None, None))
    if half % 8:
        raise parts.error("weight_packed", "a multiple of 8 bytes in a row", str(half))
    parts.check("weight_scale", ["F8_E4M3"], (rows, half // 8))
    parts.check("weight_global_scale", ["F32"], (), (1,))
    return rows, 2 * half


def nvfp4_matrix(parts: Parts) -> NVFP4Matrix:
    """The matrix of checked NVFP4 tensors."""
    nvfp4_shape(parts)
    parts.load_scales("weight_scale")
    factor = parts.load_scales("weight_global_scale").reshape(()).reciprocal()
    if not bool(factor.isfinite()):
        raise parts.error("weight_global_scale", "a number that is not 0", "0")
    return NVFP4Matrix(parts.load("weight_packed"), parts.load("weight_scale"), factor)
