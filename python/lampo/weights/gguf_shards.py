# SPDX-License-Identifier: Apache-2.0
"""GGUF models that are split over several files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lampo.weights.gguf import GGUFFile
from lampo.weights.shard_names import shard_names

if TYPE_CHECKING:
    import torch

    from lampo.weights.formats import QuantizedTensor


def open_gguf(path: Path) -> GGUFFile | GGUFShards:
    """Opens a GGUF file, or the model of which it is a shard.

    Raises:
        ValueError: one line naming the file and the fault: a shard is missing, or is not of this
            model.
    """
    file = GGUFFile(path)
    count = file.metadata.get("split.count", 0)
    if count in (0, 1):
        return file
    file.close()
    return GGUFShards(path)


class GGUFShards:
    """The open files of a split model, as one :class:`GGUFFile`; the first holds the metadata."""

    def __init__(self, path: Path) -> None:
        names = shard_names(path.name)
        if len(names) == 1:
            raise ValueError(
                f"{path}: a shard of a split model, expected a name like m-00001-of-00003.gguf"
            )
        paths = [path.with_name(name) for name in names]
        for number, shard in enumerate(paths, 1):
            if not shard.is_file():
                raise ValueError(f"model: {shard}: no such file: shard {number} of {len(paths)}")
        self.path = paths[0]
        with ExitStack() as on_error:
            self._files: list[GGUFFile] = []
            for number, shard in enumerate(paths):
                file = GGUFFile(shard)
                on_error.callback(file.close)
                self._files.append(file)
                _check_shard(file, number, len(paths))
            self._places = {name: file for file in self._files for name in file.shapes()}
            total = sum(len(file.shapes()) for file in self._files)
            expected = self.metadata.get("split.tensors.count", total)
            if not total == len(self._places) == expected:
                raise ValueError(
                    f"{self.path}: expected {expected} tensors in all shards, got {total}, "
                    f"{len(self._places)} of them different"
                )
            on_error.pop_all()
        self.nbytes = sum(file.nbytes for file in self._files)

    def close(self) -> None:
        for file in self._files:
            file.close()

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._files[0].metadata

    @property
    def kinds(self) -> Mapping[str, tuple[int, int | None]]:
        """As :attr:`GGUFFile.kinds`."""
        return self._files[0].kinds

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors by name."""
        return {name: shape for file in self._files for name, shape in file.shapes().items()}

    def freq_factors(self) -> dict[str, tuple[float, ...]]:
        """As :meth:`GGUFFile.freq_factors`."""
        return {name: f for file in self._files for name, f in file.freq_factors().items()}

    def load(self, name: str) -> torch.Tensor | QuantizedTensor:
        """As :meth:`GGUFFile.load`."""
        return self._places[name].load(name)


def _check_shard(file: GGUFFile, number: int, count: int) -> None:
    for key, expected in (("split.no", number), ("split.count", count)):
        got = file.metadata.get(key)
        if got != expected:
            raise ValueError(f"{file.path}: {key}: expected {expected} by its name, got {got!r}")
