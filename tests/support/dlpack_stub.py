# SPDX-License-Identifier: Apache-2.0
"""Tensors with a DLPack description only, on a device that the machine may lack."""

from __future__ import annotations

import ctypes
import math
from typing import Any

CUDA = 2  # DLPack's device type


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class StubTensor:
    """A float32 tensor, row-major, with a description only.

    Its data is in host memory, for any claimed device, so no kernel may be launched on it.
    """

    def __init__(self, shape: tuple[int, ...], device: tuple[int, int]) -> None:
        self._data = (ctypes.c_float * max(1, math.prod(shape)))()
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._managed = _ManagedTensor()
        tensor = self._managed.tensor
        tensor.data = ctypes.addressof(self._data)
        tensor.device = _Device(*device)
        tensor.ndim = len(shape)
        tensor.dtype = _DataType(code=2, bits=32, lanes=1)
        tensor.shape = self._shape

    def __dlpack__(self, **kwargs: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self._managed), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        device = self._managed.tensor.device
        return device.type, device.index
