# SPDX-License-Identifier: Apache-2.0
"""File types of GGUF: the format of each tensor, as llama.cpp's converters choose it.

A file type has a format for most matrices. Some that cost little or matter more get more bits: v,
the way down of the feed-forward, the output of attention, and the LM head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lampo.error_text import shown

_Rule = Callable[[int, int, int], bool]  # of layer, number of layers, query heads per key head

# Formats with blocks of 256 -> those with blocks of 32 for widths that are no multiple.
_NARROW = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
}
_DENSE = ("f32", "f16", "bf16")


def fitting(format: str, columns: int) -> str | None:
    """The format, or the nearest one that a width allows; None for no multiple of 32."""
    if columns % 32:
        return None
    return _NARROW.get(format, format) if columns % 256 else format


def _always(layer: int, count: int, group_size: int) -> bool:
    return True


def _some(layer: int, count: int, group_size: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    eighth = count // 8
    return layer < eighth or layer >= 7 * count // 8 or (layer - eighth) % 3 == 2


def _first_eighth(layer: int, count: int, group_size: int) -> bool:
    return layer < count // 8


def _grouped(layer: int, count: int, group_size: int) -> bool:
    """v is small beside q."""
    return group_size >= 4


@dataclass(frozen=True)
class FileType:
    """A mixture of formats.

    Attributes:
        number: `general.file_type` in a file.
        format: of all matrices without a rule.
        v, down, out: (rule, format) pairs for the projections to values (or to q, k and v at once),
            the second of the feed-forward and the one behind attention; the first rule that holds
            counts.
    """

    number: int
    format: str
    v: tuple[tuple[_Rule, str], ...] = ()
    down: tuple[tuple[_Rule, str], ...] = ()
    out: tuple[tuple[_Rule, str], ...] = ()

    @property
    def head(self) -> str:
        """The format of the LM head, also if it is the embedding."""
        return self.format if self.format in (*_DENSE, "q8_0") else "q6_k"

    def of_tensor(
        self,
        name: str,
        columns: int,
        *,
        tied: bool,
        num_layers: int,
        group_size: int,
    ) -> str:
        """The format of a matrix.

        Args:
            name: its GGUF name.
            columns: its width.
            tied: whether the LM head is the embedding.
            num_layers: of the model.
            group_size: query heads per key head.
        """
        if name == "position_embd.weight":
            return "f32"
        if self.format in _DENSE:
            return self.format
        if name == "output.weight" or (tied and name == "token_embd.weight"):
            wanted = self.head if fitting(self.format, columns) == self.format else "q8_0"
        else:
            part = name.removesuffix(".weight").rpartition(".")[2]
            rules = {
                "attn_v": self.v,
                "attn_qkv": self.v,
                "ffn_down": self.down,
                "attn_output": self.out,
            }.get(part, ())
            layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
            place = layer, num_layers, group_size
            wanted = next((format for rule, format in rules if rule(*place)), self.format)
        return fitting(wanted, columns) or "f16"


FILE_TYPES = {
    "f32": FileType(0, "f32"),
    "f16": FileType(1, "f16"),
    "bf16": FileType(32, "bf16"),
    "q8_0": FileType(7, "q8_0"),
    "q6_k": FileType(18, "q6_k"),
    "q5_k_m": FileType(17, "q5_k", v=((_some, "q6_k"),), down=((_some, "q6_k"),)),
    "q5_k_s": FileType(16, "q5_k"),
    "q5_1": FileType(9, "q5_1"),
    "q5_0": FileType(8, "q5_0"),
    "q4_k_m": FileType(15, "q4_k", v=((_some, "q6_k"),), down=((_some, "q6_k"),)),
    "q4_k_s": FileType(
        14,
        "q4_k",
        v=((lambda layer, *_: layer < 4, "q5_k"),),
        down=((_first_eighth, "q5_k"),),
    ),
    "q4_1": FileType(3, "q4_1"),
    "q4_0": FileType(2, "q4_0"),
    "iq4_nl": FileType(25, "iq4_nl", v=((_grouped, "q5_k"),), down=((_first_eighth, "q5_k"),)),
    "iq4_xs": FileType(30, "iq4_xs", v=((_grouped, "q5_k"),), down=((_first_eighth, "q5_k"),)),
    "q3_k_l": FileType(
        13, "q3_k", v=((_always, "q5_k"),), down=((_always, "q5_k"),), out=((_always, "q5_k"),)
    ),
    "q3_k_m": FileType(
        12,
        "q3_k",
        v=((lambda layer, *_: layer < 2, "q5_k"), (_always, "q4_k")),
        down=((lambda layer, count, _: layer < count // 16, "q5_k"), (_always, "q4_k")),
        out=((_always, "q4_k"),),
    ),
    "q3_k_s": FileType(11, "q3_k"),
    "q2_k": FileType(
        10,
        "q2_k",
        v=((_grouped, "q4_k"), (_always, "q3_k")),
        down=((_always, "q3_k"),),
        out=((_always, "q3_k"),),
    ),
}


def check_file_type(name: object) -> None:
    """Raises: ValueError for a name that is no file type's."""
    if name not in FILE_TYPES:
        raise ValueError(f"type: expected one of {', '.join(FILE_TYPES)}, got {shown(name)}")
