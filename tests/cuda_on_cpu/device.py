# SPDX-License-Identifier: Apache-2.0
"""Two GPUs for torch where there is none: their memory is the host's, their kernels run on the CPU.

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
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lampo import _C
from lampo.ops._registry import NativeOp

OPS = [
    f"lampo.ops.{name}"
    for name in ("activation", "attention", "kv_cache", "linear", "norm", "recurrent", "sampling")
]
GPUS = [torch.device("cuda", 0), torch.device("cuda", 1)]
GPU = GPUS[0]
INFO = {
    "compiled": True,
    "decision": "LAMPO_CUDA=ON",
    "why": "",
    "architectures": ["90"],
    "runtime_version": 13000,
    "driver_version": 13000,
    "devices": [
        {
            **{"index": gpu.index, "name": "the CPU", "major": 9, "minor": 0, "num_sms": 4},
            **{"memory_total": 1 << 30, "memory_free": 1 << 30, "kernel_image": "sm_90", "why": ""},
        }
        for gpu in GPUS
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
    """A tensor in the memory of the device `_index`."""

    _index: int
    device = property(lambda self: GPUS[self._index])  # type: ignore[assignment]
    is_cuda = True

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})

    def __dlpack__(self, *, stream: int, **options: Any) -> Any:
        assert stream == (current_stream(self._index).cuda_stream or 1)
        capsule = host_view(self).__dlpack__(**options)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # Version, manager, deleter, flags and data, eight bytes each, are before the device.
        device = pointer(capsule, b"dltensor_versioned") + 40
        ctypes.c_int32.from_address(device).value = 2
        ctypes.c_int32.from_address(device + 4).value = self._index
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._index


class Allocations:
    """Bytes in use on every device."""

    def __init__(self) -> None:
        self._users: Counter[tuple[int, int]] = Counter()  # tensors per device and storage
        self.allocated = [0] * len(GPUS)
        self.most = [0] * len(GPUS)

    def add(self, tensor: torch.Tensor, index: int) -> None:
        storage = host_view(tensor).untyped_storage()
        key, nbytes = (index, storage.data_ptr()), storage.nbytes()
        if not self._users[key]:
            self.allocated[index] += nbytes
            self.most[index] = max(self.most[index], self.allocated[index])
        self._users[key] += 1
        weakref.finalize(tensor, self._remove, key, nbytes)

    def _remove(self, key: tuple[int, int], nbytes: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            self.allocated[key[0]] -= nbytes


def on_device(tensor: torch.Tensor, index: int) -> DeviceTensor:
    """A tensor of the host, taken for one of a device."""
    with torch._C.DisableTorchFunction():
        there = tensor.as_subclass(DeviceTensor)
    there._index = index
    allocations.add(there, index)
    return there


def is_device(x: object) -> bool:
    return isinstance(x, DeviceTensor)


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, as the CPU's."""
    with torch._C.DisableTorchFunction():
        return tensor.as_subclass(torch.Tensor)


def named_device(x: object) -> torch.device | None:
    """The device that an argument names; None if it names none."""
    if isinstance(x, str) and x.split(":")[0] in ("cpu", "cuda"):
        x = torch.device(x)
    return x if isinstance(x, torch.device) else None


def storage_of(tensor: torch.Tensor) -> int:
    return host_view(tensor).untyped_storage().data_ptr()


class Stream:
    """The order in which a device works."""

    def __init__(self, device: torch.device | int | None = None) -> None:
        self.index = index_of(device)
        self.cuda_stream = next(handles)
        self.waiting: list[Callable[[], object]] = []
        self.captured: Graph | None = None

    def synchronize(self, last: object = None) -> None:
        """Does what waits, up to `last`."""
        if self.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        while self.waiting and (last is None or last in self.waiting):
            self.waiting.pop(0)()

    def launch(self, kernel: Callable[..., None], args: tuple[Any, ...]) -> None:
        """An op of lampo."""
        if self.captured is not None:
            self.captured.record(lambda: kernel(*args), [x for x in args if is_device(x)])
        else:
            self.synchronize()
            kernel(*args)


def index_of(device: torch.device | str | int | None) -> int:
    if isinstance(device, str):
        device = torch.device(device)
    index = device.index if isinstance(device, torch.device) else device
    return current_index if index is None else index


def current_stream(device: torch.device | int | None = None) -> Stream:
    return current_streams[index_of(device)]


@contextlib.contextmanager
def current_device(device: torch.device | int | None) -> Iterator[None]:
    global current_index
    before, current_index = current_index, index_of(device)
    try:
        yield
    finally:
        current_index = before


def call(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A function of torch, on whatever device its arguments say."""
    leaves = tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    here, there = [x for x in tensors if is_device(x)], [x for x in tensors if not is_device(x)]
    named = [device for device in map(named_device, leaves) if device is not None]
    on_gpu = [index_of(device) for device in named if device.type == "cuda"]
    target = (on_gpu or [None])[0] if named or not here else here[0]._index
    if func is Tensor.cpu:
        target = None
    if kwargs.pop("pin_memory", False):
        pinned_by.add(current_index)
    if not here and (target is None or func is torch.device):
        return func(*args, **kwargs)
    if func is torch.mm and "out_dtype" in kwargs:  # what torch has on GPUs alone
        func = _mm_in_float32
    stream = current_stream(here[0]._index if target is None else target)
    _check(stream, func, args, here, [x for x in there if x.ndim > 0], leaves, target)
    if func is Tensor.copy_:
        return _copy(stream, *args, **kwargs)
    if func in WAITS or (here and there and func is not Tensor.__getitem__) or (there and on_gpu):
        blocking.append(func.__name__)

    def run() -> Any:
        lowered = [host_view(x) for x in here]
        given = iter(lowered)

        def lower(x: object) -> object:
            return next(given) if is_device(x) else "cpu" if named_device(x) else x

        # What is already where the result belongs, and what is not.
        near = [(x, y) for x, y in zip(here, lowered, strict=True) if x._index == target]
        far = [y for x, y in zip(here, lowered, strict=True) if x._index != target]
        if target is None:
            near += zip(there, there, strict=True)
        else:
            far += there

        def place(x: object) -> object:
            """A result where it belongs; what comes from the other side is a copy."""
            if not isinstance(x, torch.Tensor):
                return x
            for original, y in near:
                if x is y:
                    return original
            if any(storage_of(x) == storage_of(y) for y in far):
                x = x.clone()
            return x if target is None else on_device(x, target)

        low_args, low_kwargs = tree_map(lower, (args, kwargs))
        return tree_map(place, func(*low_args, **low_kwargs))

    if stream.captured is not None:
        return stream.captured.record(run, here)
    slices = func is Tensor.__getitem__ and len(tensors) == 1
    if not slices and getattr(func, "__name__", "") not in ONLY_DESCRIBES:
        stream.synchronize()
    return run()


def _mm_in_float32(
    x: torch.Tensor, y: torch.Tensor, *, out_dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    assert out_dtype == torch.float32
    return torch.mm(x.float(), y.float(), out=out)


def _copy(
    stream: Stream, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    def run() -> None:
        host_view(to).copy_(host_view(source))

    if stream.captured is not None:
        stream.captured.record(run, [to, source])
    else:
        stream.waiting.append(run)
        if not non_blocking and not (is_device(to) and is_device(source)):
            blocking.append("copy_")
            stream.synchronize()
    return to


def _check(stream, func, args, here, there, leaves, target) -> None:
    name = getattr(func, "__name__", func)
    if func in HOST_ONLY:
        raise TypeError(f"{name}: can't convert a cuda:0 tensor to numpy")
    moves = func in (Tensor.copy_, Tensor.to, Tensor.cpu, Tensor.__setitem__)
    indexes = func is Tensor.__getitem__ and is_device(args[0])
    if here and there and not moves and not indexes:
        raise RuntimeError(f"{name}: expected all tensors on one device, got cuda:0 and cpu")
    if len({x._index for x in here}) > 1 and not moves:
        raise RuntimeError(f"{name}: expected all tensors on one device, got cuda:0 and cuda:1")
    if target is not None and any(isinstance(x, torch.Generator) for x in leaves):
        raise RuntimeError(f"{name}: expected a 'cuda' device type for generator, got 'cpu'")
    if stream.captured is not None and (func in WAITS or (moves and there) or target is None):
        raise RuntimeError(f"{name}: operation not permitted when stream is capturing")


class Graph:
    """A CUDA graph: what was called, to be called again. Capturing computes nothing."""

    stream: Stream
    mode: str  # capture_error_mode

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

    def __len__(self) -> int:
        return len(self._calls)

    def replay(self) -> None:
        current_stream(self.stream.index).waiting.append(self._run)

    def _run(self) -> None:
        for run, result in self._calls:
            for old, new in zip(tree_leaves(result), tree_leaves(run()), strict=True):
                if isinstance(old, torch.Tensor) and storage_of(old) != storage_of(new):
                    host_view(old).copy_(host_view(new))


@contextlib.contextmanager
def capture(
    graph: Graph,
    pool: object = None,
    stream: Stream | None = None,
    capture_error_mode: str = "global",
) -> Iterator[None]:
    """As torch.cuda.graph, whose own stream is of the device that was current at its first use."""
    if stream is None:
        stream = own_capture_stream.setdefault("stream", Stream())
    graph.stream, graph.mode = stream, capture_error_mode
    before = current_streams[stream.index]
    before.synchronize()
    stream.captured, current_streams[stream.index] = graph, stream
    graphs.append(graph)
    try:
        with current_device(stream.index):
            yield
    finally:
        stream.captured, current_streams[stream.index] = None, before
        graph.restore()


class Event:
    _stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or current_stream()
        self._mark = lambda: None
        self._stream.waiting.append(self._mark)

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize(self._mark)


class Mode(TorchFunctionMode):
    """For what has no tensor of the device among its arguments: torch.empty(3, device=...)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


handles = itertools.count(0x100)
current_index = 0
current_streams = [Stream(gpu) for gpu in GPUS]
allocations = Allocations()
pinned_by: set[int] = set()  # devices that were current when memory of the host was pinned
graphs: list[Graph] = []  # all that were captured
blocking: list[str] = []  # functions in which the host waited for a device, or copied to one
own_capture_stream: dict[str, Stream] = {}

TORCH_CUDA = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "current_device": lambda: current_index,
    "current_stream": current_stream,
    "synchronize": lambda device=None: current_stream(device).synchronize(),
    "mem_get_info": lambda *_: (1 << 30, 1 << 30),
    "graph_pool_handle": lambda: (0, 0),
    "device": current_device,
    "CUDAGraph": Graph,
    "Stream": Stream,
    "graph": capture,
    "Event": Event,
}


def captured_nodes(index: int) -> int:
    captured = current_stream(index).captured
    return 0 if captured is None else len(captured)


@contextlib.contextmanager
def cuda_on_cpu(native: ModuleType) -> Iterator[None]:
    """Within, there is a GPU, for whose tensors lampo's ops call those of `native`."""
    with pytest.MonkeyPatch.context() as patch, Mode():
        for name, value in TORCH_CUDA.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(_C, "cuda_info", lambda *_, **__: INFO)
        patch.setattr(_C, "captured_nodes", captured_nodes)
        native.set_current_stream_function(lambda index: current_stream(index).cuda_stream)
        for name in vars(_C).copy():
            if name.endswith("_workspace_size") and hasattr(native, name):
                patch.setattr(_C, name, _by_number(getattr(_C, name), getattr(native, name)))
        for module in map(importlib.import_module, OPS):
            for name, op in vars(module).items():
                kernel = getattr(native, name.removeprefix("_"), None)
                if isinstance(op, NativeOp) and kernel is not None:
                    patch.setattr(op, "kernel", _by_device(op.kernel, kernel))
        yield
        for stream in current_streams:
            stream.waiting.clear()
        pinned_by.clear()
        graphs.clear()
        blocking.clear()
        own_capture_stream.clear()


def _by_number(cpu: Callable[..., int], gpu: Callable[..., int]) -> Callable[..., int]:
    """The sizes of workspaces: the CPU's number is -1."""
    return lambda *args: (cpu if -1 in args else gpu)(*args)


def _by_device(cpu: Callable[..., None], gpu: Callable[..., None]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        there = [x for x in args if is_device(x)]
        if there:
            current_stream(there[0]._index).launch(gpu, args)
        else:
            cpu(*args)

    return call
