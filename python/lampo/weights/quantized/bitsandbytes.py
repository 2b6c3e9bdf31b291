# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes, as transformers saves it: 4 bits with a table of 16 numbers (NF4, FP4), or 8 bits.

4 bits, of a matrix read row by row:
    weight                      U8 [out in / 2, 1]: the upper four bits of byte i are code 2 i
    weight.quant_map            F32 [16], the value of each code
    weight.absmax               F32, a factor for each block of 64 (`blocksize`) weights; or U8, and
    weight.nested_quant_map     F32 [256], the value of each of these, with
    weight.nested_absmax        F32, a factor for each 256 (`nested_blocksize`) of them;
                                `nested_offset` is added
    weight.quant_state.bitsandbytes__nf4  U8, JSON: shape and sizes
    w = quant_map[code] absmax
8 bits:
    weight                      I8 [out, in]
    SCB                         F32 [out], the largest magnitude of a row
    w = weight SCB / 127

NF4's table is no table of integers: no packed format holds it.
Source: https://arxiv.org/abs/2305.14314 (NF4), https://arxiv.org/abs/2208.07339 (8 bits).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lampo.error_text import shown
from lampo.weights.fields import Fields
from lampo.weights.formats import CodedMatrix
from lampo.weights.quantized.integers import IntegerMatrix
from lampo.weights.quantized.method import FLOATS, Method, Parts, read_ignored

if TYPE_CHECKING:
    import torch

_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
_MAX_STATE_BYTES = 1 << 12


@dataclass(frozen=True)
class TableMatrix(CodedMatrix):
    """``w[i] = table[code i] * absmax[i / block_size]``, i counting along rows.

    Attributes:
        pairs: [rows * columns / 2] uint8.
        table: [16] float32.
        absmax: [ceil(rows * columns / block_size)] float32.
        block_size: weights with one factor.
        shape: (rows, columns).
        format, nbytes: as of CodedMatrix.
    """

    pairs: torch.Tensor
    table: torch.Tensor
    absmax: torch.Tensor
    block_size: int
    shape: tuple[int, int]
    format: str
    nbytes: int

    def rows(self, start: int, stop: int) -> torch.Tensor:
        import torch

        columns = self.shape[1]
        begin, end = start * columns, stop * columns
        pairs = self.pairs[begin // 2 : -(-end // 2)]
        codes = torch.stack([pairs >> 4, pairs & 15], -1).flatten().int()
        codes = codes[begin % 2 :][: end - begin]
        factors = self.absmax[torch.arange(begin, end) // self.block_size]
        return (self.table[codes] * factors).view(-1, columns)


@dataclass(frozen=True)
class _State:
    """The JSON of a 4-bit matrix."""

    shape: tuple[int, int]
    block_size: int
    nested_block_size: int
    nested_offset: float


class BitsAndBytes(Method):
    parts = (
        *("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax"),
        *("weight.nested_quant_map", *_STATES, "SCB", "weight_format"),
    )

    def __init__(self, fields: Fields) -> None:
        if fields.boolean("load_in_8bit", False) == fields.boolean("load_in_4bit", False):
            raise fields.error("load_in_4bit", "either it or load_in_8bit to be true")
        self.ignored = read_ignored(fields, "llm_int8_skip_modules")

    def marks(self, part: str, dtype: str) -> bool:
        return part in ("weight.absmax", "SCB") or (part == "weight" and dtype in ("I8", "U8"))

    def shape(self, parts: Parts) -> tuple[int, int]:
        if parts.has("SCB") or parts.dtype("weight") == "I8":
            rows, columns = parts.check("weight", ["I8"], (None, None))
            parts.check("SCB", FLOATS, (rows,))
            return rows, columns
        return self._checked_state(parts).shape

    def load(self, parts: Parts) -> CodedMatrix:
        if parts.has("SCB"):
            return _eight_bits(parts)
        state = self._checked_state(parts)
        absmax = parts.load("weight.absmax")
        if not absmax.is_floating_point():
            values = parts.load_scales("weight.nested_quant_map")[absmax.int()]
            factors = parts.load_scales("weight.nested_absmax")
            factors = factors.repeat_interleave(state.nested_block_size)[: len(values)]
            absmax = values * factors + state.nested_offset
        else:
            absmax = parts.load_scales("weight.absmax")
        return TableMatrix(
            parts.load("weight").flatten(),
            parts.load_scales("weight.quant_map"),
            absmax,
            state.block_size,
            state.shape,
            "NF4" if parts.has(_STATES[0]) else "FP4",
            parts.nbytes(*self.parts),
        )

    def _checked_state(self, parts: Parts) -> _State:
        state = _read_state(parts)
        rows, columns = state.shape
        count = rows * columns
        blocks = -(-count // state.block_size)
        half = -(-count // 2)
        parts.check("weight", ["U8"], (half, 1), (1, half), (half,))
        parts.check("weight.quant_map", ["F32"], (16,))
        parts.check("weight.absmax", ["F32", "U8"], (blocks,))
        if parts.dtype("weight.absmax") == "U8":
            parts.check("weight.nested_quant_map", ["F32"], (256,))
            nested = -(-blocks // state.nested_block_size)
            parts.check("weight.nested_absmax", ["F32"], (nested,))
        return state


def _read_state(parts: Parts) -> _State:
    name = next((state for state in _STATES if parts.has(state)), _STATES[0])
    (size,) = parts.check(name, ["U8"], (None,))
    if size > _MAX_STATE_BYTES:
        raise parts.error(name, f"at most {_MAX_STATE_BYTES} bytes", str(size))
    try:
        values = json.loads(parts.files.read_bytes(f"{parts.linear}.{name}"))
    except (ValueError, RecursionError):
        raise parts.error(name, "JSON", "bytes that cannot be read") from None
    if not isinstance(values, dict):
        raise parts.error(name, "a JSON object", shown(values))
    fields = Fields(f"{parts.files.folder}: tensor {shown(f'{parts.linear}.{name}')}", values)
    shape = fields.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and 0 < n < 1 << 31 for n in shape)
    ):
        raise fields.error("shape", "two positive integers")
    return _State(
        (shape[0], shape[1]),
        fields.integer("blocksize", 1, 1 << 20),
        fields.integer("nested_blocksize", 1, 1 << 20, 256),
        fields.number("nested_offset", -1e30, 1e30, 0.0),
    )


def _eight_bits(parts: Parts) -> IntegerMatrix:
    import torch

    scales = parts.load_scales("SCB")[:, None] * torch.tensor(1 / 127)
    codes = parts.load("weight")
    return IntegerMatrix(codes, scales, None, None, "LLM.int8", parts.nbytes("weight", "SCB"))
