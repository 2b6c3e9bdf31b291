# SPDX-License-Identifier: Apache-2.0
"""safetensors, one file or sharded: read by the `safetensors` library, with additional checks.

The library validates a file's header (sizes, overlaps, holes) and maps the file. Checked here: that
shard names are plain names in the folder, that index and shards agree, and the dtypes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from lampo.weights.fields import read_json_object, shown

if TYPE_CHECKING:
    import torch

_DTYPES = ("F32", "F16", "BF16")
_MAX_INDEX_BYTES = 64 << 20
_MAX_SHARDS = 4096
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass
class _Shard:
    path: Path
    header: Any  # safe_open, which has no type of its own, for shapes and dtypes: without torch
    mapped: tuple[tuple[int, int], ...] | None = None  # address ranges of the file

    @cached_property
    def tensors(self) -> Any:
        """safe_open for torch, which it imports."""
        return safe_open(str(self.path), framework="pt", device="cpu")


class SafetensorsFolder:
    """The tensors of a folder of safetensors files, by name; views keep the mappings alive.

    Raises:
        ValueError: one line naming the file, the tensor and the fault.
    """

    def __init__(self, folder: Path) -> None:
        self._shards: list[_Shard] = []
        self._where: dict[str, _Shard] = {}
        self.nbytes = 0
        index = folder / _INDEX
        if index.exists():
            self._open_sharded(folder, index)
        else:
            self._open_all(_files(folder), folder)

    def _open_sharded(self, folder: Path, index: Path) -> None:
        weight_map = read_json_object(index, _MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: weight_map: expected an object, got {shown(weight_map)}")
        for tensor, name in weight_map.items():
            if not _is_plain_name(name):
                raise ValueError(
                    f"{index}: weight_map: {shown(tensor)}: expected the plain name of a "
                    f".safetensors file in the folder, got {shown(name)}"
                )
        names = sorted(set(weight_map.values()))
        if len(names) > _MAX_SHARDS:
            raise ValueError(f"{index}: {len(names)} files, at most {_MAX_SHARDS} are accepted")
        found = self._open_all([folder / name for name in names], index)
        for tensor, name in weight_map.items():
            if found.get(tensor) != name:
                place = f"it is in {found[tensor]}" if tensor in found else "it is in no file"
                raise ValueError(f"{index}: tensor {shown(tensor)} should be in {name}; {place}")

    def _open_all(self, files: list[Path], folder: Path) -> dict[str, str]:
        """The names of the files, by tensor."""
        found: dict[str, str] = {}
        for file in files:
            for tensor in self._open_shard(file):
                if tensor in found:
                    raise ValueError(
                        f"{folder}: tensor {shown(tensor)} stands in both {found[tensor]} and "
                        f"{file.name}"
                    )
                found[tensor] = file.name
                self._where[tensor] = self._shards[-1]
        return found

    def _open_shard(self, path: Path) -> list[str]:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        try:
            header: Any = safe_open(str(path), framework="np")
            names = list(header.keys())
        except (SafetensorError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: not a safetensors file that can be read: {reason}") from None
        self._shards.append(_Shard(path, header))
        self.nbytes += path.stat().st_size
        return names

    def names(self) -> list[str]:
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape; its dtype is checked first."""
        shard = self._where[name]
        part = shard.header.get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise ValueError(
                f"{shard.path}: tensor {shown(name)}: dtype {part.get_dtype()} is not supported, "
                f"supported are {', '.join(_DTYPES)}"
            )
        return tuple(part.get_shape())

    def load(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._where[name].tensors.get_tensor(name)
        if tensor.data_ptr() % tensor.element_size():  # a header of odd length: copy to align
            tensor = tensor.clone()
        return tensor

    def release(self, name: str) -> None:
        """Returns the tensor's pages to the system; they are read again on the next access.

        The library owns the mapping, so its address range comes from the system. Tensors outside
        of it are skipped.
        """
        if sys.platform != "linux":
            return
        shard = self._where[name]
        tensor: torch.Tensor = shard.tensors.get_tensor(name)
        if shard.mapped is None:
            shard.mapped = _mapped_ranges(shard.path)
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if any(low <= start and end <= high for low, high in shard.mapped):
            start = start // mmap.PAGESIZE * mmap.PAGESIZE
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _files(folder: Path) -> list[Path]:
    """The files of a folder without an index: one, or all shards of one model by their names."""
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    shards = [_SHARD.fullmatch(file.name) for file in files]
    stems = {(shard[1], int(shard[3])) for shard in shards if shard is not None}
    if len(stems) == 1 and all(shards) and len(files) == stems.pop()[1] <= _MAX_SHARDS:
        return files
    if len(files) != 1:
        names = ", ".join(f.name for f in files[:4]) or "none"
        raise ValueError(
            f"{folder}: expected {_SINGLE}, {_INDEX} or exactly one *.safetensors file, got {names}"
        )
    return files


def _is_plain_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and not name.startswith(".")
        and not any(c in "/\\:\0" for c in name)
    )


def _mapped_ranges(path: Path) -> tuple[tuple[int, int], ...]:
    """Address ranges where this process maps the file, from /proc."""
    stat = path.stat()
    device = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}"
    ranges = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if fields[3] == device and fields[4] == str(stat.st_ino):
                low, high = fields[0].split("-")
                ranges.append((int(low, 16), int(high, 16)))
    return tuple(ranges)
