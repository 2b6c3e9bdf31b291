# SPDX-License-Identifier: Apache-2.0
"""Matrices of integer codes with a scale and a zero point per group of a row."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lampo.weights.formats import Blocks, CodedMatrix

if TYPE_CHECKING:
    import torch


class _Candidate(NamedTuple):
    """A packed format, and the matrices that it holds."""

    format: str
    block_size: int  # of which the groups must be a multiple
    in_half: bool  # whether scales are float16
    has_zeros: bool


# By bits, the smallest first.
_CANDIDATES = {
    4: (
        _Candidate("int4_g128", 128, False, True),
        _Candidate("int4_g64", 64, True, True),
        _Candidate("q4_0", 32, True, False),
        _Candidate("int4_g32", 32, True, True),
    ),
    8: (_Candidate("int8_g128", 128, False, True), _Candidate("q8_0", 32, True, False)),
}


@dataclass(frozen=True)
class IntegerMatrix(CodedMatrix):
    """``w[n, k] = scales[n, g] * (codes[n, k] - zeros[n, g])``, g the group of column k.

    Attributes:
        codes: [rows, columns], 4 bits as uint8 in 0 .. 15, 8 bits as int8.
        scales: [rows, groups] float32.
        zeros: [rows, groups] int16 in the codes' range; None: 8 with 4 bits, 0 with 8.
        order: [columns] int64, the group of each column; None: equal groups in order.
        format: the name in messages.
        nbytes: in the file.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    order: torch.Tensor | None
    format: str
    nbytes: int

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def _bits(self) -> int:
        return 8 if self.codes.dtype.is_signed else 4

    def rows(self, start: int, stop: int) -> torch.Tensor:
        zeros: torch.Tensor | int = 8 if self._bits == 4 else 0
        if self.zeros is not None:
            zeros = self._by_column(self.zeros[start:stop].float())
        scales = self._by_column(self.scales[start:stop])
        return (self.codes[start:stop].float() - zeros) * scales

    def _by_column(self, groups: torch.Tensor) -> torch.Tensor:
        if self.order is not None:
            return groups[:, self.order]
        return groups.repeat_interleave(self.shape[1] // groups.shape[1], 1)

    def packed(self, formats: Collection[str]) -> Blocks | None:
        """In blocks of the smallest format that holds scales and zero points exactly."""
        if self.order is not None:
            return None
        group_size = self.shape[1] // self.scales.shape[1]
        fit_half = bool((self.scales.half().float() == self.scales).all())
        symmetric = self.zeros is None or bool((self.zeros == (8 if self._bits == 4 else 0)).all())
        for candidate in _CANDIDATES[self._bits]:
            if (
                candidate.format in formats
                and group_size % candidate.block_size == 0
                and (fit_half or not candidate.in_half)
                and (symmetric or candidate.has_zeros)
            ):
                return self._blocks(candidate)
        return None

    def _blocks(self, to: _Candidate) -> Blocks:
        import torch

        rows, columns = self.shape
        blocks = columns // to.block_size
        scales = self.scales.half() if to.in_half else self.scales
        scales = scales.repeat_interleave(blocks // scales.shape[1], 1)
        parts = [scales[..., None].view(torch.uint8)]
        if to.has_zeros:
            if self.zeros is None:
                zeros = torch.full((rows, blocks, 1), 8 if self._bits == 4 else 0)
            else:
                zeros = self.zeros.repeat_interleave(blocks // self.zeros.shape[1], 1)[..., None]
            parts.append(zeros.to(torch.int8).view(torch.uint8))
        if self._bits == 8:
            parts.append(self.codes.view(torch.uint8).view(rows, blocks, -1))
        else:
            pairs = self.codes.view(rows, blocks, -1, 2, 16)
            parts.append((pairs[..., 0, :] | pairs[..., 1, :] << 4).flatten(2))
        return Blocks(torch.cat(parts, 2).flatten(1), to.format, self.shape)


def unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The codes in 32-bit words, from the lowest bits up: [..., n] int32 -> [..., n, 32 / bits]."""
    import torch

    codes = words.reshape(-1).view(torch.uint8)
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], -1)
    return codes.view(*words.shape, 32 // bits)


def signed(codes: torch.Tensor) -> torch.Tensor:
    """8-bit codes above a zero of 128, as int8."""
    import torch

    return (codes ^ 0x80).view(torch.int8)
