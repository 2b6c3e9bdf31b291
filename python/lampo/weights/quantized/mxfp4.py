# SPDX-License-Identifier: Apache-2.0
"""MXFP4, as gpt-oss stores its experts: E2M1 codes with a power of two for each 32 of them.

    blocks  U8 [..., out, in / 32, 16]: the lower four bits of byte i are code 2 i, the others
            code 2 i + 1
    scales  U8 [..., out, in / 32]: exponents plus 127

GGUF's MXFP4 has the same numbers in another order, so the conversion is exact.
Source: OCP Microscaling Formats (MX) Specification 1.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lampo.weights.formats import QuantizedTensor

if TYPE_CHECKING:
    import torch


def mxfp4_matrices(blocks: torch.Tensor, scales: torch.Tensor, name: str) -> list[QuantizedTensor]:
    """The matrices of a model's experts.

    Args:
        blocks: [experts, out, in / 32, 16] uint8.
        scales: [experts, out, in / 32] uint8.
        name: of the tensor in errors.

    Returns:
        a matrix [out, in] per expert.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a scale that is no number.
    """
    import torch

    if blocks.dtype != torch.uint8 or blocks.dim() != 4 or blocks.shape[-1] != 16:
        found = f"{blocks.dtype} {list(blocks.shape)}"
        raise ValueError(
            f"{name}_blocks: expected uint8 [experts, out, in / 32, 16], found {found}"
        )
    if scales.dtype != torch.uint8 or scales.shape != blocks.shape[:-1]:
        expected, found = list(blocks.shape[:-1]), f"{scales.dtype} {list(scales.shape)}"
        raise ValueError(f"{name}_scales: expected uint8 {expected}, found {found}")
    if bool((scales == 255).any()):
        raise ValueError(f"{name}_scales: expected finite scales, found nan")
    rows, columns = blocks.shape[1], 32 * blocks.shape[2]
    matrices = []
    for codes, exponents in zip(blocks, scales, strict=True):
        data = torch.cat([exponents[..., None], halves_from_neighbours(codes)], -1).flatten(1)
        matrices.append(QuantizedTensor(data, "mxfp4", (rows, columns)))
    return matrices


def halves_from_neighbours(pairs: torch.Tensor) -> torch.Tensor:
    """Bytes of codes 2 i and 2 i + 1 to bytes of codes i and 16 + i: [..., 16] uint8."""
    import torch

    codes = torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2)
    return codes[..., :16] | codes[..., 16:] << 4
