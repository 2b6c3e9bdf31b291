# SPDX-License-Identifier: Apache-2.0
"""safetensors, one file or sharded: read by the `safetensors` library, with additional checks.

The library validates a file's header (sizes, overlaps, holes). Checked here: that shard names are
plain names in the folder, that index and shards agree, and the dtypes. Tensors are read here: the
library would map the file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from lampo.error_text import shortened, shown
from lampo.weights.fields import read_json_object
from lampo.weights.reading import OpenFile

if TYPE_CHECKING:
    import torch

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # and torch's names
# Of the parts of quantized tensors.
_PART_DTYPES = {
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "uint8",  # as its bits
}
_MAX_INDEX_BYTES = 64 << 20
_MAX_SHARDS = 4096
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class _Stored:
    """A tensor's place: `offset` from the start of the file."""

    file: OpenFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFolder:
    """The tensors of a folder of safetensors files, by name.

    Attributes:
        folder: as it was given.
        nbytes: bytes of the files.

    Raises:
        ValueError: one line naming the file, the tensor and the fault.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[OpenFile] = []
        self._where: dict[str, _Stored] = {}
        index = folder / _INDEX
        try:
            if index.exists():
                self._open_sharded(folder, index)
            else:
                self._open_all(_files(folder), folder)
        except BaseException:
            self.close()
            raise
        self.nbytes = sum(file.nbytes for file in self._files)

    def close(self) -> None:
        for file in self._files:
            file.close()

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
            for tensor, stored in self._open_shard(file).items():
                if tensor in found:
                    raise ValueError(
                        f"{folder}: tensor {shown(tensor)} stands in both {found[tensor]} and "
                        f"{file.name}"
                    )
                found[tensor] = file.name
                self._where[tensor] = stored
        return found

    def _open_shard(self, path: Path) -> dict[str, _Stored]:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        try:
            with safe_open(str(path), framework="np"):
                pass
        except (SafetensorError, OSError, ValueError) as error:
            reason = shortened(str(error).splitlines()[0])
            raise ValueError(f"{path}: not a safetensors file that can be read: {reason}") from None
        file = OpenFile(path)
        self._files.append(file)
        return _stored_tensors(file)

    def names(self) -> list[str]:
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape; its dtype is checked first."""
        stored = self._where[name]
        if stored.dtype not in _DTYPES:
            raise ValueError(
                f"{stored.file.path}: tensor {shown(name)}: dtype {stored.dtype} is not supported, "
                f"supported are {', '.join(_DTYPES)}"
            )
        return stored.shape

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def stored(self, name: str) -> tuple[Path, str, tuple[int, ...]]:
        """A tensor's file, and its dtype and shape there, unchecked."""
        stored = self._where[name]
        return stored.file.path, stored.dtype, stored.shape

    def nbytes_of(self, name: str) -> int:
        return self._where[name].nbytes

    def load(self, name: str) -> torch.Tensor:
        """The tensor, in memory of its own.

        Raises:
            ValueError: the file has been cut short.
        """
        import torch

        stored = self._where[name]
        raw = stored.file.read(stored.offset, stored.nbytes)
        dtype = getattr(torch, (_DTYPES | _PART_DTYPES)[stored.dtype])
        return raw.view(dtype).view(stored.shape)

    def read_bytes(self, name: str) -> bytes:
        """The bytes of a small tensor, without torch."""
        stored = self._where[name]
        return stored.file.read_bytes(stored.offset, stored.nbytes)


def _stored_tensors(file: OpenFile) -> dict[str, _Stored]:
    """The tensors of a file with a header that the library has validated."""
    header_bytes = int.from_bytes(file.read_bytes(0, 8), "little")
    header = json.loads(file.read_bytes(8, header_bytes))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = _Stored(
            file, entry["dtype"], tuple(entry["shape"]), 8 + header_bytes + begin, end - begin
        )
    return found


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
        and not any("\ud800" <= c <= "\udfff" for c in name)  # half of a character
    )
