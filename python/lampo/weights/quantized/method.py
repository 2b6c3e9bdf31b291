# SPDX-License-Identifier: Apache-2.0
"""The interface of a quantization method, and the checked tensors of a linear."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from lampo.error_text import shown
from lampo.weights.fields import Fields
from lampo.weights.formats import CodedMatrix
from lampo.weights.safetensors import SafetensorsFolder

if TYPE_CHECKING:
    import torch

FLOATS = ("F16", "BF16", "F32")
_MAX_IGNORED = 1 << 12


class Parts:
    """The tensors of one quantized linear, by the ends of their names: "qweight", "scales".

    Args:
        files: the folder.
        linear: the beginning of the names, such as "model.layers.0.mlp.up_proj".
    """

    def __init__(self, files: SafetensorsFolder, linear: str) -> None:
        self.files = files
        self.linear = linear

    def has(self, part: str) -> bool:
        return f"{self.linear}.{part}" in self.files

    def error(self, part: str, expected: str, found: str) -> ValueError:
        """The error of a tensor, which need not exist."""
        name = f"{self.linear}.{part}"
        place = self.files.stored(name)[0] if name in self.files else self.files.folder
        return ValueError(f"{place}: tensor {shown(name)}: expected {expected}, found {found}")

    def check(
        self, part: str, dtypes: Sequence[str], *shapes: tuple[int | None, ...]
    ) -> tuple[int, ...]:
        """The shape of a tensor, after a check of it and of the dtype.

        Args:
            part: the end of its name.
            dtypes: those that are allowed, by safetensors' names.
            shapes: those that are allowed; None stands for any positive number.

        Raises:
            ValueError: one line naming file, tensor, expectation and what was found.
        """
        expected = " or ".join(
            str(list(shape)).replace("None", "n").replace("'", "") for shape in shapes
        )
        expected = f"{'/'.join(dtypes)} {expected}"
        if not self.has(part):
            raise self.error(part, expected, "no such tensor")
        _, dtype, found = self.files.stored(f"{self.linear}.{part}")
        fits = any(
            len(shape) == len(found)
            and all(n == m or (n is None and m > 0) for n, m in zip(shape, found, strict=True))
            for shape in shapes
        )
        if dtype not in dtypes or not fits:
            raise self.error(part, expected, f"{dtype} {list(found)}")
        return found

    def dtype(self, part: str) -> str:
        """The dtype of a tensor; "" if there is none."""
        return self.files.stored(f"{self.linear}.{part}")[1] if self.has(part) else ""

    def nbytes(self, *parts: str) -> int:
        """Bytes of the named tensors that exist."""
        return sum(
            self.files.nbytes_of(f"{self.linear}.{part}") for part in parts if self.has(part)
        )

    def load(self, part: str) -> torch.Tensor:
        return self.files.load(f"{self.linear}.{part}")

    def load_scales(self, part: str) -> torch.Tensor:
        """A tensor of scales, which must be finite, in float32."""
        scales = self.load(part).float()
        if not bool(scales.isfinite().all()):
            raise self.error(part, "finite scales", str(float(scales[~scales.isfinite()][0])))
        return scales


class Method(ABC):
    """One way to store quantized linears. A subclass takes a file here, and a line in folder.py.

    Attributes:
        parts: the ends of the names of a linear's tensors; others are not of the method.
        ignored: modules that the configuration excludes, as it has them.
    """

    parts: ClassVar[tuple[str, ...]]
    ignored: tuple[str, ...] = ()

    @abstractmethod
    def __init__(self, fields: Fields) -> None:
        """Reads quantization_config.

        Raises:
            ValueError: one line naming the field, its value and what is supported.
        """

    @abstractmethod
    def marks(self, part: str, dtype: str) -> bool:
        """Whether a tensor with this end of its name and this dtype makes a linear quantized."""

    @abstractmethod
    def shape(self, parts: Parts) -> tuple[int, int]:
        """(out_features, in_features), after a check of all tensors' dtypes and shapes.

        Raises:
            ValueError: one line naming file, tensor, expectation and what was found.
        """

    @abstractmethod
    def load(self, parts: Parts) -> CodedMatrix:
        """The matrix of checked parts.

        Raises:
            ValueError: scales that are not finite, or a file that has been cut short.
        """


def read_ignored(fields: Fields, *keys: str) -> tuple[str, ...]:
    """A list of modules under the first of the keys that is set.

    Patterns of compressed-tensors ("re:...") are left out: the files show which linears are
    quantized, and a pattern of a stranger may take forever to match.
    """
    key = next((key for key in keys if fields.has(key)), keys[0])
    names = fields.get(key)
    if names is None:
        return ()
    if not isinstance(names, list) or len(names) > _MAX_IGNORED:
        raise fields.error(key, "a list of modules")
    if not all(isinstance(name, str) for name in names):
        raise fields.error(key, "a list of names")
    return tuple(name for name in names if not name.startswith("re:"))


def group_size_of(fields: Fields, key: str = "group_size") -> int | None:
    """Weights of a row with one scale, 128 if the field is absent; None: the whole row."""
    value = fields.integer(key, -1, 1 << 20, 128)
    if value == -1:
        return None
    if value == 0 or value % 32:
        raise fields.error(key, "-1, or a positive multiple of 32")
    return value


def groups_of(parts: Parts, part: str, columns: int, group_size: int | None) -> int:
    """Number of groups of a row."""
    size = columns if group_size is None else group_size
    if columns % size or columns % 32:
        whole = 32 if group_size is None else size
        raise parts.error(part, f"a multiple of {whole} columns", f"{columns}")
    return columns // size
