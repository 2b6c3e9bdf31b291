# SPDX-License-Identifier: Apache-2.0
"""Writing of a GGUF file, tensor by tensor, by the `gguf` package."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from lampo.weights.formats import ggml_type

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written: `format` is one of GGUF's types, such as "f32" or "q4_k"."""

    name: str
    shape: tuple[int, ...]
    format: str

    @property
    def nbytes(self) -> int:
        _, kind = ggml_type(self.format)
        return kind.row_bytes(self.shape[-1]) * math.prod(self.shape[:-1])


class GGUFWriter:
    """A new GGUF file; a context manager.

    It is written under a temporary name beside its own, which it gets once it is complete. Without
    that the temporary file is removed.

    Args:
        path: the file; one that exists is replaced.
        metadata: the key-value section: bool, int, float, str, or a list of one of them; empty
            lists are left out. "general.architecture" is required.
        tensors: in the order in which they are added.
        kinds: types of the metadata by key, as :attr:`GGUFHeader.kinds` has them. Others follow
            from the values: 32 bits for numbers.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Any],
        tensors: Sequence[TensorPlan],
        kinds: Mapping[str, tuple[int, int | None]],
    ) -> None:
        import gguf

        self._path = path
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        self._temporary = Path(name)
        self._writer = gguf.GGUFWriter(name, metadata["general.architecture"])
        try:
            for key, value in metadata.items():
                if key == "general.architecture" or value == []:
                    continue
                kind, element = kinds.get(key, (None, None))
                if kind is None:
                    kind, element = _kind(value)
                types = gguf.GGUFValueType
                self._writer.add_key_value(
                    key, value, types(kind), None if element is None else types(element)
                )
            for plan in tensors:
                number, _ = ggml_type(plan.format)
                self._writer.add_tensor_info(
                    plan.name,
                    plan.shape,
                    np.dtype(np.float32),  # of data without a type; these have one
                    plan.nbytes,
                    gguf.GGMLQuantizationType(number),
                )
            self._writer.write_header_to_file()
            self._writer.write_kv_data_to_file()
            self._writer.write_ti_data_to_file()
        except BaseException:
            self._discard()
            raise

    def add(self, data: torch.Tensor) -> None:
        """The next tensor's data, contiguous, in its format."""
        import torch

        self._writer.write_tensor_data(data.reshape(-1).view(torch.uint8).numpy())

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._discard()
            return
        try:
            self._writer.close()
            umask = os.umask(0)
            os.umask(umask)
            self._temporary.chmod(0o666 & ~umask)  # that of mkstemp is for its user alone
            self._temporary.replace(self._path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        with suppress(OSError):  # of a full disk, which is known already
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


def _kind(value: Any) -> tuple[int, int | None]:
    """The type of a value in a file: 32 bits for numbers, signed ones in lists."""
    if isinstance(value, list):
        kind, _ = _kind(value[0])
        return 9, 5 if kind == 4 else kind
    if isinstance(value, bool):
        return 7, None
    if isinstance(value, int):
        return 4, None
    return (6, None) if isinstance(value, float) else (8, None)
