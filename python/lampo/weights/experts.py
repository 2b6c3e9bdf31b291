# SPDX-License-Identifier: Apache-2.0
"""Experts in safetensors: one tensor per projection, however a folder stores them.

    experts.0.gate_proj.weight   a matrix per expert; w1, w2, w3 of Mixtral likewise
    experts.gate_up_proj         [experts, 2 size, hidden]: gate above up; or [experts, hidden,
                                 2 size]: transposed, columns of gate and up by turns
    experts.down_proj            [experts, hidden, size], or transposed
    experts.gate_up_proj_bias    [experts, 2 size]
    experts.gate_up_proj_blocks  with _scales: MXFP4, rows of gate and up by turns

All become "experts.gate_proj.weight", "experts.up_proj.weight", "experts.down_proj.weight", each
[experts, rows, columns], and "experts.gate_proj.bias" and so on, [experts, rows].
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from lampo.error_text import shown
from lampo.weights.formats import Blocks, CodedMatrix
from lampo.weights.quantized.folder import QuantizedFolder
from lampo.weights.quantized.mxfp4 import mxfp4_matrices
from lampo.weights.safetensors import SafetensorsFolder

if TYPE_CHECKING:
    import torch

# Names of Mixtral and gpt-oss, and those of all others.
_NAMES = {
    "block_sparse_moe": "mlp",
    "w1": "gate_proj",
    "w2": "down_proj",
    "w3": "up_proj",
    "router": "gate",
}
_OTHER_NAMES = re.compile(rf"(?<=\.)({'|'.join(_NAMES)})(?=\.)")
_ONE = re.compile(r"(.*\.experts)\.(\d{1,5})\.((?:gate|up|down)_proj\.weight)")
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_bias|_blocks|_scales)?")
_HALVES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


@dataclass(frozen=True)
class StackedMatrix(CodedMatrix):
    """Matrices of one kind and one number of columns, one above the other."""

    parts: tuple[CodedMatrix, ...]

    @property
    def format(self) -> str:
        return self.parts[0].format

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        import torch

        found, first = [], 0
        for part in self.parts:
            begin, end = max(start - first, 0), min(stop - first, part.shape[0])
            if begin < end:
                found.append(part.rows(begin, end))
            first += part.shape[0]
        return torch.cat(found)

    def packed(self, formats: Collection[str]) -> Blocks | None:
        import torch

        parts = [part.packed(formats) for part in self.parts]
        blocks = [part for part in parts if part is not None]
        if len(blocks) < len(parts) or len({part.format for part in blocks}) > 1:
            return None
        return Blocks(torch.cat([part.blocks for part in blocks]), blocks[0].format, self.shape)


class _Experts(Protocol):
    """One projection of all experts of a layer."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def load(self) -> torch.Tensor | CodedMatrix: ...


class _Single:
    """A matrix per expert."""

    def __init__(self, source: SafetensorsFolder | QuantizedFolder) -> None:
        self._source = source
        self.names: dict[int, str] = {}  # by the expert's number

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """[experts, rows, columns].

        Raises:
            ValueError: a missing expert, or one of another shape, by name.
        """
        first = self.names[min(self.names)]
        shape = self._source.shape(first)
        for number in range(max(self.names) + 1):
            if number not in self.names:
                known = re.sub(r"(?<=\.experts\.)\d+", str(number), first)
                raise ValueError(f"model: tensor {shown(known)} is missing")
            found = self._source.shape(self.names[number])
            if found != shape or len(found) != 2:
                raise ValueError(
                    f"model: tensor {shown(self.names[number])}: expected shape {shape}, as "
                    f"{shown(first)} has, got {found}"
                )
        return len(self.names), *shape

    def load(self) -> torch.Tensor | CodedMatrix:
        import torch

        parts = [self._source.load(self.names[i]) for i in range(self.shape[0])]
        dense = [part for part in parts if isinstance(part, torch.Tensor)]
        coded = [part for part in parts if isinstance(part, CodedMatrix)]
        if dense and coded:
            raise ValueError(
                f"model: tensor {shown(self.names[0])}: expected all experts quantized, or none"
            )
        return torch.stack(dense) if dense else StackedMatrix(tuple(coded))


class _Fused:
    """A tensor of all experts, perhaps with a second projection.

    Args:
        files: the folder.
        name: the tensor, without its kind.
        half: 0: gate, or the only projection; 1: up.
        num_halves: 2 with gate and up in one tensor.
        by_turns: rows of gate and up alternate, and dense tensors are transposed.
        kind: "", "_bias", or "_blocks" of MXFP4.
    """

    def __init__(
        self,
        files: SafetensorsFolder | QuantizedFolder,
        name: str,
        half: int,
        num_halves: int,
        by_turns: bool,
        kind: str,
    ) -> None:
        self._files = files
        self._name = name
        self._half = half
        self._num_halves = num_halves
        self._by_turns = by_turns
        self._kind = kind

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """[experts, rows, columns], or [experts, rows] of a bias."""
        rank = {"": 3, "_bias": 2, "_blocks": 4}[self._kind]
        if self._kind == "_blocks":
            assert isinstance(self._files, SafetensorsFolder)
            _, _, shape = self._files.stored(f"{self._name}_blocks")
        else:
            shape = self._files.shape(self._name + self._kind)
        if len(shape) != rank:
            raise ValueError(
                f"model: tensor {shown(self._name + self._kind)}: expected {rank} dimensions, got "
                f"shape {shape}"
            )
        if self._kind == "_blocks":
            shape = (*shape[:2], 32 * shape[2])
        if self._kind == "" and self._by_turns:
            shape = (shape[0], shape[2], shape[1])
        return (shape[0], shape[1] // self._num_halves, *shape[2:])

    def load(self) -> torch.Tensor | CodedMatrix:
        if self._kind == "_blocks":
            blocks, scales = (self._load(f"_{part}") for part in ("blocks", "scales"))
            parts = mxfp4_matrices(self._own(blocks), self._own(scales), self._name)
            return StackedMatrix(tuple(parts))
        tensor = self._load(self._kind)
        if self._kind == "" and self._by_turns:
            tensor = tensor.transpose(1, 2)
        return self._own(tensor)

    def _load(self, end: str) -> torch.Tensor:
        tensor = self._files.load(self._name + end)
        assert not isinstance(tensor, CodedMatrix)
        return tensor

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        """The projection's rows."""
        if self._by_turns:
            return tensor[:, self._half :: self._num_halves].contiguous()
        size = tensor.shape[1] // self._num_halves
        return tensor[:, size * self._half : size * (self._half + 1)].contiguous()


class ExpertsFolder:
    """The tensors of a folder, those of experts as one tensor per projection.

    Args:
        source: the folder, perhaps with quantized linears.
        by_turns: whether fused tensors are transposed, with gate and up by turns.
    """

    def __init__(self, source: SafetensorsFolder | QuantizedFolder, *, by_turns: bool) -> None:
        self.nbytes = source.nbytes
        self._source = source
        self._plain: dict[str, str] = {}  # to the name in the folder
        self._experts: dict[str, _Experts] = {}
        for stored in source.names():
            name = _OTHER_NAMES.sub(lambda found: _NAMES[found[1]], stored)
            one, fused = _ONE.fullmatch(name), _FUSED.fullmatch(name)
            if one is not None:
                group = self._experts.setdefault(f"{one[1]}.{one[3]}", _Single(source))
                if isinstance(group, _Single):
                    group.names[int(one[2])] = stored
            elif fused is not None:
                kind, halves = fused[3] or "", _HALVES[fused[2]]
                part = "bias" if kind == "_bias" else "weight"
                for i, half in enumerate(halves if kind != "_scales" else ()):
                    place = stored.removesuffix(kind)
                    self._experts[f"{fused[1]}.{half}.{part}"] = _Fused(
                        source, place, i, len(halves), by_turns, kind
                    )
            else:
                self._plain[name] = stored

    def close(self) -> None:
        self._source.close()

    def names(self) -> list[str]:
        return [*self._plain, *self._experts]

    def is_quantized(self, name: str) -> bool:
        if name not in self._plain or not isinstance(self._source, QuantizedFolder):
            return False
        return self._source.is_quantized(self._plain[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape.

        Raises:
            ValueError: experts that are missing or differ, by name.
        """
        if name in self._experts:
            return self._experts[name].shape
        return self._source.shape(self._plain[name])

    def load(self, name: str) -> torch.Tensor | CodedMatrix:
        """The tensor, in memory of its own.

        Raises:
            ValueError: scales that are not finite, or a file that has been cut short.
        """
        if name in self._experts:
            return self._experts[name].load()
        return self._source.load(self._plain[name])
