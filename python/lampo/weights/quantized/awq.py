# SPDX-License-Identifier: Apache-2.0
"""AWQ, as AutoAWQ writes it in version "gemm": 4 bits.

    qweight  I32 [in, out / 8], qzeros I32 [groups, out / 8]: 4 bits number i of word c, from the
             lowest up, belong to output 8 c + (0, 2, 4, 6, 1, 3, 5, 7)[i]
    scales   [groups, out]

    w = scales (q - zero)

Source: https://arxiv.org/abs/2306.00978.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lampo.weights.fields import Fields
from lampo.weights.quantized.integers import IntegerMatrix, unpacked
from lampo.weights.quantized.method import (
    FLOATS,
    Method,
    Parts,
    group_size_of,
    groups_of,
    read_ignored,
)

if TYPE_CHECKING:
    import torch

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in a word, of outputs 0 to 7


class AWQ(Method):
    parts = ("qweight", "qzeros", "scales")

    def __init__(self, fields: Fields) -> None:
        if fields.integer("bits", 1, 32, 4) != 4:
            raise fields.error("bits", "4")
        version = fields.get("version") or "gemm"
        if not isinstance(version, str) or version.lower() != "gemm":
            raise fields.error("version", "gemm")
        self._group_size = group_size_of(fields)
        self.ignored = read_ignored(fields, "modules_to_not_convert")

    def marks(self, part: str, dtype: str) -> bool:
        return part == "qweight"

    def shape(self, parts: Parts) -> tuple[int, int]:
        columns, words = parts.check("qweight", ["I32"], (None, None))
        groups = groups_of(parts, "qweight", columns, self._group_size)
        parts.check("qzeros", ["I32"], (groups, words))
        parts.check("scales", FLOATS, (groups, 8 * words))
        return 8 * words, columns

    def load(self, parts: Parts) -> IntegerMatrix:
        import torch

        self.shape(parts)
        return IntegerMatrix(
            _by_output(parts.load("qweight")),
            parts.load_scales("scales").t().contiguous(),
            _by_output(parts.load("qzeros")).to(torch.int16),
            None,
            "AWQ",
            parts.nbytes(*self.parts),
        )


def _by_output(words: torch.Tensor) -> torch.Tensor:
    """[n, out / 8] words -> [out, n] codes."""
    return unpacked(words, 4)[..., list(_PLACES)].flatten(1).t().contiguous()
