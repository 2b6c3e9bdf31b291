# SPDX-License-Identifier: Apache-2.0
"""Registration of the native ops with torch: ``torch.ops.lampo.<name>``.

Every op writes into its arguments and returns nothing, so fake kernels are empty, and an op can be
captured, traced by ``torch.compile`` and checked by ``torch.library.opcheck``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lampo import _C
from lampo.ops._arguments import check_scalar

# Torch's function that makes no object; builds without CUDA lack it.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def _current_stream(device: int) -> int:
    """The handle of torch's current stream; before torch has used a GPU, the null stream."""
    if not torch.cuda.is_initialized():
        return 0
    if _raw_stream is not None:
        return int(_raw_stream(device))
    return int(torch.cuda.current_stream(device).cuda_stream)


_C.set_current_stream_function(_current_stream)

_library = torch.library.Library("lampo", "DEF")
# Types of a schema, with those that a Python caller may pass.
_SCALARS = {"bool": bool, "int": int, "float": float, "str": str}


class _Recording(threading.local):
    """References to the arguments of this thread's calls while a program records them."""

    kept: list[object] | None = None


_recording = _Recording()


@contextmanager
def keep_arguments(kept: list[object]) -> Iterator[None]:
    """Append the arguments of every op that this thread calls to `kept`."""
    before, _recording.kept = _recording.kept, kept
    try:
        yield
    finally:
        _recording.kept = before


def is_recording() -> bool:
    """Whether the arguments of this thread's calls are kept."""
    return _recording.kept is not None


class NativeOp:
    """An op for Python callers: calls its kernel directly, which saves torch's dispatcher (several
    microseconds a call), unless ``torch.compile`` is tracing.

    Args:
        schema: as in :func:`register`.
        kernel: the native function.

    Attributes:
        kernel: as given.
    """

    def __init__(self, schema: str, kernel: Callable[..., None]) -> None:
        self.kernel = kernel
        self._overload = getattr(torch.ops.lampo, schema[: schema.index("(")]).default
        self._scalars = [
            (i, argument.name, _SCALARS[str(argument.type)])
            for i, argument in enumerate(self._overload._schema.arguments)
            if str(argument.type) in _SCALARS
        ]

    def __call__(self, *args: Any) -> None:
        if torch.compiler.is_compiling():
            self._overload(*args)
            return
        if _recording.kept is not None:
            _recording.kept.append(args)
        try:
            self.kernel(*args)
        except TypeError:
            # pybind11's error for a scalar of a wrong type lists the signature only.
            for i, argument, kind in self._scalars:
                check_scalar(argument, args[i], kind)
            raise


def register(schema: str, kernel: Callable[..., None]) -> NativeOp:
    """Register a native function with torch under a schema, for tensors on CPU and CUDA.

    Args:
        schema: ``name(Tensor x, ..., Tensor(a!) out) -> ()``; mutated arguments are marked.
        kernel: function of ``lampo._C``, taking the schema's arguments by position.
    """
    _library.define(schema)
    name = schema[: schema.index("(")]
    _library.impl(name, kernel, "CPU")
    _library.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"lampo::{name}", _fake, lib=_library)
    return NativeOp(schema, kernel)


def _fake(*args: Any, **kwargs: Any) -> None:
    """The meta kernel of an op without results."""
