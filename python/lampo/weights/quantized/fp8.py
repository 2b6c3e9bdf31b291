# SPDX-License-Identifier: Apache-2.0
"""FP8: E4M3 codes with a scale for each block of rows and columns, each row, or all.

    weight            F8_E4M3 [out, in]
    weight_scale_inv  [out / 128, in / 128], rounded up, where weight_block_size is set
    weight_scale      [out] or [out, 1], or of one element

    w = weight scale, also with a scale of the name "inv"

A scale of type U8 or F8_E8M0 is an exponent: 2^(scale - 127). Scales of inputs are left out: lampo
rounds inputs by itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lampo.weights.fields import Fields
from lampo.weights.formats import Blocks, CodedMatrix
from lampo.weights.quantized.method import FLOATS, Method, Parts, read_ignored

if TYPE_CHECKING:
    import torch

_EXPONENTS = ("U8", "F8_E8M0")


@dataclass(frozen=True)
class FP8Matrix(CodedMatrix):
    """``w[n, k] = codes[n, k] * scales[n / block[0], k / block[1]]``.

    Attributes:
        codes: [rows, columns] float8_e4m3fn.
        scales: [ceil(rows / block[0]), ceil(columns / block[1])] float32.
        block: rows and columns with one scale.
        nbytes: in the file.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    block: tuple[int, int]
    nbytes: int
    format: str = "FP8"

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def rows(self, start: int, stop: int) -> torch.Tensor:
        import torch

        of_row = torch.arange(start, stop) // self.block[0]
        of_column = torch.arange(self.shape[1]) // self.block[1]
        return self.codes[start:stop].float() * self.scales[of_row][:, of_column]

    def packed(self, formats: Collection[str]) -> Blocks | None:
        import torch

        rows, columns = self.shape
        width = self.block[1]
        if "fp8_g128" not in formats or columns % 128 or (width % 128 and width < columns):
            return None
        count = columns // 128
        of_row = torch.arange(rows) // self.block[0]
        of_block = torch.arange(count) * 128 // width
        factors = self.scales[of_row][:, of_block, None].view(torch.uint8)
        codes = self.codes.view(torch.uint8).view(rows, count, 128)
        return Blocks(torch.cat([factors, codes], 2).flatten(1), "fp8_g128", self.shape)


def fp8_shape(parts: Parts, block: tuple[int, int] | None) -> tuple[int, int]:
    """The shape of checked FP8 tensors."""
    rows, columns = parts.check("weight", ["F8_E4M3"], (None, None))
    if block is not None:
        name = "weight_scale_inv" if parts.has("weight_scale_inv") else "weight_scale"
        grid = -(-rows // block[0]), -(-columns // block[1])
        parts.check(name, (*FLOATS, *_EXPONENTS), grid)
    else:
        parts.check("weight_scale", FLOATS, (), (1,), (1, 1), (rows,), (rows, 1))
    return rows, columns


def fp8_matrix(parts: Parts, block: tuple[int, int] | None) -> FP8Matrix:
    """The matrix of checked FP8 tensors."""
    import torch

    rows, columns = fp8_shape(parts, block)
    name = "weight_scale_inv" if parts.has("weight_scale_inv") else "weight_scale"
    if parts.dtype(name) in _EXPONENTS:
        exponents = parts.load(name)
        if bool((exponents == 255).any()):
            raise parts.error(name, "finite scales", "nan")
        scales = torch.ldexp(torch.ones(exponents.shape), exponents.int() - 127)
    else:
        scales = parts.load_scales(name)
    if block is None:
        scales = scales.reshape(-1, 1)
        block = (rows if len(scales) == 1 else 1), columns
    codes = parts.load("weight")
    return FP8Matrix(codes, scales, block, parts.nbytes("weight", name))


def block_shape(fields: Fields, key: str) -> tuple[int, int] | None:
    """Rows and columns of a block with one scale, also as "128x128"; None: there are no blocks."""
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch("[0-9]{1,7}x[0-9]{1,7}", value):
        value = [int(size) for size in value.split("x")]
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(type(n) is int and 1 <= n <= 1 << 20 for n in value)
    ):
        raise fields.error(key, "two positive integers")
    return value[0], value[1]


class FP8(Method):
    """quant_method "fp8" of DeepSeek, Qwen and others, and "fbgemm_fp8"."""

    parts = (
        *("weight", "weight_scale", "weight_scale_inv"),
        *("input_scale", "input_scale_ub", "activation_scale"),
    )

    def __init__(self, fields: Fields) -> None:
        fields.choice("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
        self._block = block_shape(fields, "weight_block_size")
        self.ignored = read_ignored(fields, "modules_to_not_convert", "ignored_layers")

    def marks(self, part: str, dtype: str) -> bool:
        return part in ("weight_scale", "weight_scale_inv") or (
            part == "weight" and dtype == "F8_E4M3"
        )

    def shape(self, parts: Parts) -> tuple[int, int]:
        return fp8_shape(parts, self._block)

    def load(self, parts: Parts) -> FP8Matrix:
        return fp8_matrix(parts, self._block)
