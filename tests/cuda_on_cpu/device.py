# SPDX-License-Identifier: Apache-2.0
"""A GPU for torch where there is none: its memory is the host's, its kernels run on the CPU.

Tensors of the device are tensors of a subclass. Torch computes with them on the CPU, and refuses
what it refuses on a GPU: tensors of two devices in one call, NumPy on device memory, an answer for
the host while a graph is captured. What torch leaves to the stream waits here until the host asks
for something: `copy_`s within the device or without blocking, and replays of graphs. So a host that
overwrites too early what a copy reads, or reads too early what it writes, gets a wrong result.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lampo import _C

OPS = [
    f"lampo.ops.{name}"
    for name in ("activation", "attention", "kv_cache", "linear", "norm", "sampling")
]
GPU = torch.device("cuda", 0)
INFO = {
    "compiled": True,
    "decision": "LAMPO_CUDA=ON",
    "why": "",
    "architectures": ["90"],
    "runtime_version": 13000,
    "driver_version": 13000,
    "devices": [
        {
            **{"index": 0, "name": "the CPU", "major": 9, "minor": 0, "num_sms": 4},
            **{"memory_total": 1 << 30, "memory_free": 1 << 30, "kernel_image": "sm_90", "why": ""},
        }
    ],
}

Tensor = torch.Tensor
# Functions that wait for the device, an error during the capture of a graph.
WAITS = {
    *(Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    *(Tensor.__index__, Tensor.nonzero, torch.equal, torch.nonzero),
}
# Functions that neither read nor write elements: properties, views, uninitialised memory.
ONLY_DESCRIBES = {
    *("__get__", "__len__", "size", "dim", "numel", "stride", "data_ptr", "element_size"),
    *("is_contiguous", "view", "empty", "empty_like", "new_empty"),
}
HOST_ONLY = {Tensor.numpy, Tensor.__array__}


class DeviceTensor(torch.Tensor):
    """A tensor in the device's memory."""

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = True

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return stream.call(func, args, kwargs or {})

    def __dlpack__(self, **options: Any) -> Any:
        capsule = host_view(self).__dlpack__(**options)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # Version, manager, deleter, flags and data, eight bytes each, are before the device.
        device = pointer(capsule, b"dltensor_versioned") + 40
        ctypes.c_int32.from_address(device).value = 2
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def is_device(x: object) -> bool:
    return isinstance(x, DeviceTensor)


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, as the CPU's."""
    with torch._C.DisableTorchFunction():
        return tensor.as_subclass(torch.Tensor)


def device_type(x: object) -> str | None:
    """The type of the device that an argument names; None if it names none."""
    if isinstance(x, torch.device):
        return x.type
    return x.split(":")[0] if isinstance(x, str) and x.split(":")[0] in ("cpu", "cuda") else None


def storage_of(tensor: torch.Tensor) -> int:
    return host_view(tensor).untyped_storage().data_ptr()


class Stream:
    """The order in which the device works."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.captured: Graph | None = None

    def synchronize(self, last: object = None) -> None:
        """Does what waits, up to `last`."""
        if self.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        while self.waiting and (last is None or last in self.waiting):
            self.waiting.pop(0)()

    def call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A function of torch, on whatever device its arguments say."""
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        here, there = [x for x in tensors if is_device(x)], [x for x in tensors if not is_device(x)]
        named = [device_type(x) for x in leaves if device_type(x)]
        on_device = "cuda" in named if named else bool(here) and func is not Tensor.cpu
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        if not here and (not on_device or func is torch.device):
            return func(*args, **kwargs)
        self._check(func, args, here, [x for x in there if x.ndim > 0], leaves, on_device)
        if func is Tensor.copy_:
            return self._copy(*args, **kwargs)

        def run() -> Any:
            lowered = [host_view(x) for x in here]
            given = iter(lowered)

            def lower(x: object) -> object:
                return next(given) if is_device(x) else "cpu" if device_type(x) else x

            def place(x: object) -> object:
                """A result where it belongs; what comes from the other side is a copy."""
                if not isinstance(x, torch.Tensor):
                    return x
                others, same = (there, lowered) if on_device else (lowered, there)
                for original, y in zip(here if on_device else there, same, strict=True):
                    if x is y:
                        return original
                if any(storage_of(x) == storage_of(y) for y in others):
                    x = x.clone()
                return x.as_subclass(DeviceTensor) if on_device else x

            low_args, low_kwargs = tree_map(lower, (args, kwargs))
            return tree_map(place, func(*low_args, **low_kwargs))

        if self.captured is not None:
            return self.captured.record(run, here)
        slices = func is Tensor.__getitem__ and len(tensors) == 1
        if not slices and getattr(func, "__name__", "") not in ONLY_DESCRIBES:
            self.synchronize()
        return run()

    def _copy(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
        def run() -> None:
            host_view(to).copy_(host_view(source))

        if self.captured is not None:
            self.captured.record(run, [to, source])
        else:
            self.waiting.append(run)
            if not non_blocking and not (is_device(to) and is_device(source)):
                self.synchronize()
        return to

    def launch(self, kernel: Callable[..., None], args: tuple[Any, ...]) -> None:
        """An op of lampo."""
        if self.captured is not None:
            self.captured.record(lambda: kernel(*args), [x for x in args if is_device(x)])
        else:
            self.synchronize()
            kernel(*args)

    def _check(self, func, args, here, there, leaves, on_device) -> None:
        name = getattr(func, "__name__", func)
        if func in HOST_ONLY:
            raise TypeError(f"{name}: can't convert a cuda:0 tensor to numpy")
        moves = func in (Tensor.copy_, Tensor.to, Tensor.cpu, Tensor.__setitem__)
        indexes = func is Tensor.__getitem__ and is_device(args[0])
        if here and there and not moves and not indexes:
            raise RuntimeError(f"{name}: expected all tensors on one device, got cuda:0 and cpu")
        if on_device and any(isinstance(x, torch.Generator) for x in leaves):
            raise RuntimeError(f"{name}: expected a 'cuda' device type for generator, got 'cpu'")
        if self.captured is not None and (func in WAITS or (moves and there) or not on_device):
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")


class Graph:
    """A CUDA graph: what was called, to be called again. Capturing computes nothing."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[[], Any], Any]] = []
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def record(self, run: Callable[[], Any], used: list[torch.Tensor]) -> Any:
        for tensor in map(host_view, used):  # it is run all the same, for the shapes
            whole = torch.empty(0, dtype=torch.uint8)
            whole.set_(tensor.untyped_storage())  # type: ignore[call-overload]
            self._before.setdefault(whole.data_ptr(), (whole, whole.clone()))
        result = run()
        self._calls.append((run, result))
        return result

    def restore(self) -> None:
        for memory, content in self._before.values():
            memory.copy_(content)
        self._before.clear()

    def replay(self) -> None:
        stream.waiting.append(self._run)

    def _run(self) -> None:
        for run, result in self._calls:
            for old, new in zip(tree_leaves(result), tree_leaves(run()), strict=True):
                if isinstance(old, torch.Tensor) and storage_of(old) != storage_of(new):
                    host_view(old).copy_(host_view(new))


@contextlib.contextmanager
def capture(graph: Graph, **_: object) -> Iterator[None]:
    stream.synchronize()
    stream.captured = graph
    try:
        yield
    finally:
        stream.captured = None
        graph.restore()


class Event:
    def record(self, _: object = None) -> None:
        self._mark = lambda: None
        stream.waiting.append(self._mark)

    def synchronize(self) -> None:
        stream.synchronize(self._mark)


class Mode(TorchFunctionMode):
    """For what has no tensor of the device among its arguments: torch.empty(3, device=...)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return stream.call(func, args, kwargs or {})


stream = Stream()
TORCH_CUDA = {
    "is_available": lambda: True,
    "current_device": lambda: 0,
    "current_stream": lambda *_: stream,
    "synchronize": lambda *_: stream.synchronize(),
    "mem_get_info": lambda *_: (1 << 30, 1 << 30),
    "graph_pool_handle": lambda: (0, 0),
    "device": lambda *_: contextlib.nullcontext(),
    "CUDAGraph": Graph,
    "graph": capture,
    "Event": Event,
}


@contextlib.contextmanager
def cuda_on_cpu(native: ModuleType) -> Iterator[None]:
    """Within, there is a GPU, for whose tensors lampo's ops call those of `native`."""
    with pytest.MonkeyPatch.context() as patch, Mode():
        for name, value in TORCH_CUDA.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(_C, "cuda_info", lambda *_, **__: INFO)
        for name in vars(_C).copy():
            if name.endswith("_workspace_size") and hasattr(native, name):
                patch.setattr(_C, name, _by_number(getattr(_C, name), getattr(native, name)))
        for module in map(importlib.import_module, OPS):
            for name, function in vars(module).copy().items():
                kernel = getattr(native, name.removeprefix("_"), None)
                if name.startswith("_") and kernel is not None:
                    patch.setattr(module, name, _by_device(function, kernel))
        yield
        stream.waiting.clear()


def _by_number(cpu: Callable[..., int], gpu: Callable[..., int]) -> Callable[..., int]:
    """The sizes of workspaces: the CPU's number is -1."""
    return lambda *args: (cpu if -1 in args else gpu)(*args)


def _by_device(cpu: Callable[..., None], gpu: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        if any(map(is_device, args)):
            stream.launch(gpu, args)
        else:
            cpu(*args)

    return call
