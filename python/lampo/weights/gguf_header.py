# SPDX-License-Identifier: Apache-2.0
"""The header of a GGUF file, versions 2 and 3, little endian, parsed strictly.

Every count, length and offset is checked against the size of the file before it is used, so that
the cost of parsing is bounded by a constant times the file's bytes. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from lampo.error_text import shown
from lampo.weights.formats import GGML_TYPES, GGMLType
from lampo.weights.reading import OpenFile

_MAX_KEY_BYTES = 65535
_MAX_NAME_BYTES = 256
_MAX_DIMS = 4
_MAX_ARRAY = 1 << 22
_MAX_ALIGNMENT = 1 << 16
_FIRST_READ = 1 << 20
_MIN_FILE_BYTES = 24
_MIN_KEY_VALUE_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8

_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {  # number in the file -> struct format, which is NumPy's as well
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """Shape and place of a tensor: `shape` rows first, `offset` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """`kinds`: the types of the metadata, and of their elements for arrays, as numbers of GGUF."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    kinds: dict[str, tuple[int, int | None]]


class _Parser:
    """Reads a header front to back; every read is bounded by the end of the file."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.size = file.nbytes
        self.data = b""  # the beginning of the file, as far as it has been needed
        self.position = 0

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.file.path}: not a GGUF file that can be read: {what}")

    def need(self, end: int) -> None:
        """Extends `data` to at least `end` bytes, which the file has."""
        if end > len(self.data):
            length = min(max(end, 2 * len(self.data), _FIRST_READ), self.size)
            self.data += self.file.read_bytes(len(self.data), length - len(self.data))

    def take(self, nbytes: int, what: str) -> int:
        """Skips `nbytes` bytes and returns their start."""
        start = self.position
        if nbytes > self.size - start:
            self.fail(f"{what}: {nbytes} bytes at {start} run past the end at {self.size}")
        self.position = start + nbytes
        self.need(self.position)
        return start

    def u32(self, what: str) -> int:
        start = self.take(4, what)
        return int(_U32.unpack_from(self.data, start)[0])

    def u64(self, what: str) -> int:
        start = self.take(8, what)
        return int(_U64.unpack_from(self.data, start)[0])

    def count(self, what: str, min_bytes: int) -> int:
        count = self.u64(what)
        if count > (self.size - self.position) // min_bytes:
            self.fail(f"{what} = {count} is more than a file of {self.size} bytes can hold")
        return count

    def string(self, what: str, max_bytes: int) -> str:
        length = self.u64(what)
        if length > max_bytes:
            self.fail(f"{what}: a string of {length} bytes, at most {max_bytes} are accepted")
        start = self.take(length, what)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what}: not UTF-8 at byte {start}")

    def value(self, kind: int, key: str) -> tuple[Any, int | None]:
        """A value, and the type of an array's elements."""
        if kind == _STRING:
            return self.string(key, self.size), None
        if kind == _ARRAY:
            element = self.u32(key)
            return self.array(element, key), element
        return self.scalars(kind, 1, key)[0], None

    def array(self, kind: int, key: str) -> list[Any]:
        if kind == _ARRAY:
            self.fail(f"{key}: arrays of arrays are not supported")
        count = self.count(f"{key}: length", 8 if kind == _STRING else 1)
        if count > _MAX_ARRAY:
            self.fail(f"{key}: length = {count}, at most {_MAX_ARRAY} are accepted")
        return self.strings(count, key) if kind == _STRING else self.scalars(kind, count, key)

    def scalars(self, kind: int, count: int, key: str) -> list[Any]:
        if kind not in _SCALARS:
            self.fail(f"{key}: unknown value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        start = self.take(count * dtype.itemsize, key)
        values = np.frombuffer(self.data, dtype, count, start)
        if kind == _BOOL:
            if count and values.max() > 1:
                self.fail(f"{key}: a boolean is {values.max()}, neither 0 nor 1")
            values = values.astype(bool)
        return list(values.tolist())

    def strings(self, count: int, key: str) -> list[str]:
        """Strings; the slowest loop of a load, as vocabularies have 50,000 to 250,000."""
        data, unpack = self.data, _U64.unpack_from
        position = self.position
        result = []
        for _ in range(count):
            start = position + 8
            if start > len(data):
                if start > self.size:
                    break
                self.need(start)
                data = self.data
            position = start + unpack(data, position)[0]
            if position > len(data):
                if position > self.size:
                    break
                self.need(position)
                data = self.data
            result.append(data[start:position])
        if len(result) < count:
            self.fail(f"{key}: string {len(result)} runs past the end at {self.size}")
        self.position = position
        try:
            return [str(item, "utf-8") for item in result]
        except UnicodeDecodeError as error:
            self.fail(f"{key}: {shown(error.object)} is not UTF-8")


def parse_header(file: OpenFile) -> GGUFHeader:
    """Parses and validates the header of a GGUF file.

    Raises:
        ValueError: one line naming the file, the key or tensor, and the fault.
    """
    p = _Parser(file)
    if p.size < _MIN_FILE_BYTES:
        raise ValueError(f"{file.path}: not a GGUF file: it has only {p.size} bytes")
    p.take(4, "magic")
    magic = p.data[:4]
    if magic != b"GGUF":
        p.fail(f"it starts with {shown(magic)} instead of b'GGUF'")
    version = p.u32("version")
    if version not in (2, 3):
        big_endian = version in (2 << 24, 3 << 24)
        what = "big-endian files are" if big_endian else f"version {version} is"
        p.fail(f"{what} not supported, only little-endian versions 2 and 3 are")
    num_tensors = p.count("the number of tensors", _MIN_TENSOR_INFO_BYTES)
    num_keys = p.count("the number of keys", _MIN_KEY_VALUE_BYTES)

    metadata: dict[str, Any] = {}
    kinds: dict[str, tuple[int, int | None]] = {}
    for index in range(num_keys):
        key = p.string(f"key {index}", _MAX_KEY_BYTES)
        if key in metadata:
            p.fail(f"the key {shown(key)} stands twice")
        kind = p.u32(shown(key))
        metadata[key], element = p.value(kind, shown(key))
        kinds[key] = kind, element
    infos = [_tensor_info(p, index) for index in range(num_tensors)]

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= _MAX_ALIGNMENT:
        p.fail(f"general.alignment = {shown(alignment)}: expected 8 to {_MAX_ALIGNMENT}")
    if alignment & (alignment - 1):
        p.fail(f"general.alignment = {alignment}: expected a power of two")
    data_start = -(-p.position // alignment) * alignment
    return GGUFHeader(version, metadata, _placed(p, infos, data_start, alignment), kinds)


def _tensor_info(p: _Parser, index: int) -> TensorInfo:
    name = p.string(f"name of tensor {index}", _MAX_NAME_BYTES)
    what = f"tensor {shown(name)}"
    num_dims = p.u32(what)
    if not 1 <= num_dims <= _MAX_DIMS:
        p.fail(f"{what}: {num_dims} dimensions, expected 1 to {_MAX_DIMS}")
    dims = [p.u64(what) for _ in range(num_dims)]  # innermost first
    kind, offset = p.u32(what), p.u64(what)
    ggml_type = GGML_TYPES.get(kind)
    if ggml_type is None:
        known = ", ".join(t.name.upper() for t in GGML_TYPES.values())
        p.fail(f"{what}: type {kind} is not supported, supported are {known}")
    # Python's integers do not overflow; the bound keeps every product below 2^63 for later users.
    if min(dims) < 1 or math.prod(dims) > p.size * ggml_type.block_size:
        p.fail(f"{what}: dimensions {dims} do not fit a file of {p.size} bytes")
    if dims[0] % ggml_type.block_size:
        p.fail(f"{what}: rows of {dims[0]} are no multiple of {ggml_type.name}'s block size")
    nbytes = ggml_type.row_bytes(dims[0]) * math.prod(dims[1:])
    return TensorInfo(name, tuple(reversed(dims)), ggml_type, offset, nbytes)


def _placed(
    p: _Parser, infos: list[TensorInfo], data_start: int, alignment: int
) -> dict[str, TensorInfo]:
    """Tensors by name, with offsets from the start of the file, checked to be disjoint in it."""
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        what = f"tensor {shown(info.name)}"
        if info.name in tensors:
            p.fail(f"{what} stands twice")
        if info.offset % alignment:
            p.fail(f"{what}: offset {info.offset} is no multiple of {alignment}")
        offset = data_start + info.offset
        if offset + info.nbytes > p.size:
            p.fail(f"{what}: {info.nbytes} bytes at {offset} run past the end at {p.size}")
        tensors[info.name] = TensorInfo(info.name, info.shape, info.type, offset, info.nbytes)
    end, before = data_start, ""
    for info in sorted(tensors.values(), key=lambda t: t.offset):
        if info.offset < end:
            p.fail(f"tensor {shown(info.name)} at {info.offset} overlaps tensor {shown(before)}")
        end, before = info.offset + info.nbytes, info.name
    return tensors
