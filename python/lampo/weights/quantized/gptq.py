# SPDX-License-Identifier: Apache-2.0
"""GPTQ, as AutoGPTQ and GPTQModel write it: 4 or 8 bits, any order of groups.

    qweight  I32 [in / (32 / bits), out]: a word has the codes of neighbouring inputs
    qzeros   I32 [groups, out / (32 / bits)]: a word has those of neighbouring outputs, in version 1
             ("gptq") less one, modulo 2^bits
    scales   [groups, out]
    g_idx    I32 [in], the group of each input; may be absent

    w = scales (q - zero)

With act order (desc_act) inputs of a group are scattered; no packed format has scales by column.
Source: https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

from lampo.weights.fields import Fields
from lampo.weights.quantized.integers import IntegerMatrix, signed, unpacked
from lampo.weights.quantized.method import (
    FLOATS,
    Method,
    Parts,
    group_size_of,
    groups_of,
    read_ignored,
)


class GPTQ(Method):
    parts = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, fields: Fields) -> None:
        self._bits = int(fields.integer("bits", 1, 32))
        if self._bits not in (4, 8):
            raise fields.error("bits", "4 or 8")
        self._group_size = group_size_of(fields)
        key = "checkpoint_format" if fields.has("checkpoint_format") else "format"
        version = fields.choice(key, ("gptq", "gptq_v2"), "gptq")
        self._stored_less = 1 if version == "gptq" else 0
        self.ignored = read_ignored(fields, "modules_to_not_convert")

    def marks(self, part: str, dtype: str) -> bool:
        return part == "qweight"

    def shape(self, parts: Parts) -> tuple[int, int]:
        per_word = 32 // self._bits
        words, rows = parts.check("qweight", ["I32"], (None, None))
        columns = words * per_word
        groups = groups_of(parts, "qweight", columns, self._group_size)
        if rows % per_word:
            raise parts.error("qweight", f"a multiple of {per_word} columns", str(rows))
        parts.check("qzeros", ["I32"], (groups, rows // per_word))
        parts.check("scales", FLOATS, (groups, rows))
        if parts.has("g_idx"):
            parts.check("g_idx", ["I32"], (columns,))
        return rows, columns

    def load(self, parts: Parts) -> IntegerMatrix:
        import torch

        rows, columns = self.shape(parts)
        qweight, qzeros = parts.load("qweight"), parts.load("qzeros")
        scales = parts.load_scales("scales")
        groups = len(scales)
        codes = unpacked(qweight.t(), self._bits).view(rows, columns)
        mask = (1 << self._bits) - 1
        zeros = unpacked(qzeros, self._bits).view(groups, rows) + self._stored_less & mask
        zeros = zeros.t().to(torch.int16)
        if self._bits == 8:
            codes, zeros = signed(codes), zeros - 128
        order = None
        if parts.has("g_idx"):
            found = parts.load("g_idx").long()
            if bool(((found < 0) | (found >= groups)).any()):
                worst = int(found[(found < 0) | (found >= groups)][0])
                raise parts.error("g_idx", f"numbers below {groups}", str(worst))
            if not torch.equal(found, torch.arange(columns) // (columns // groups)):
                order = found
        kind = f"GPTQ {self._bits} bits" + (", act order" if order is not None else "")
        return IntegerMatrix(
            codes,
            scales.t().contiguous(),
            zeros.contiguous(),
            order,
            kind,
            parts.nbytes(*self.parts),
        )
