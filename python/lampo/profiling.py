# SPDX-License-Identifier: Apache-2.0
"""Time and bytes per op of a decode step, compared with the read bandwidth of memory."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lampo import _C
from lampo.checks import check_integer
from lampo.runtime.machine_load import LoadMeter, MachineLoad

if TYPE_CHECKING:
    from lampo.llm import LLM

_MOST_SHARE = 1.1  # of the read bandwidth


@dataclass(frozen=True)
class OpProfile:
    """All calls of one op in a decode step.

    Attributes:
        name: the op's name; for a linear with the shape and the format of its weight.
        calls: number of calls per step.
        nbytes: bytes that the calls must move, each input and output once.
        seconds: median time per step, the barriers after the calls included.
    """

    name: str
    calls: int
    nbytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds


@dataclass(frozen=True)
class Profile:
    """A decode step, op by op.

    Attributes:
        ops: sorted by time, the largest first.
        seconds: median time of a step.
        read_bandwidth: bytes per second read from a buffer of the size of a step's traffic.
        batch_size, depth: number of sequences, and of cached tokens per sequence.
        num_threads: number of compute threads.
        load: use of the machine meanwhile; None: unknown.
    """

    ops: list[OpProfile]
    seconds: float
    read_bandwidth: float
    batch_size: int
    depth: int
    num_threads: int
    load: MachineLoad | None = None

    @property
    def nbytes(self) -> int:
        return sum(op.nbytes for op in self.ops)

    @property
    def share_of_limit(self) -> float:
        """Minimum time to read the bytes, over the time taken."""
        return self.nbytes / self.read_bandwidth / self.seconds

    @property
    def limit_is_plausible(self) -> bool:
        """Whether reading alone was as fast as the step and its large parts, but for noise.

        Small parts may be faster: they find their bytes in a cache.
        """
        rates = [self.nbytes / self.seconds]
        rates += [op.bytes_per_second for op in self.ops if op.nbytes >= self.nbytes / 10]
        return max(rates) <= _MOST_SHARE * self.read_bandwidth


def check_profile_arguments(
    batch_size: int, depth: int, repeats: int, max_num_seqs: int, max_model_len: int
) -> None:
    """Raises what :func:`profile` raises for a model of these sizes, before that is loaded."""
    check_integer("batch_size", batch_size, 1, max_num_seqs)
    check_integer("depth", depth, 0, max_model_len - 2)
    check_integer("repeats", repeats, 1, 10_000)


def profile(llm: LLM, *, batch_size: int = 1, depth: int = 0, repeats: int = 20) -> Profile:
    """Profiles the decode step of `batch_size` sequences that have `depth` tokens in the cache.

    Fills a cache with random numbers, then replays one step `repeats` times with a clock.

    Args:
        llm: an open model on CPU.
        batch_size: 1 to the `max_num_seqs` of the model.
        depth: 0 to its `max_model_len` - 2.
        repeats: 1 to 10,000.

    Raises:
        ValueError: an argument out of range.
    """
    check_profile_arguments(batch_size, depth, repeats, llm.max_num_seqs, llm.max_model_len)
    meter = LoadMeter()
    replays = llm.inspector().replay_decode(batch_size, depth, repeats)
    rows: dict[str, list[int]] = {}  # op name -> indices of its calls
    for at, call in enumerate(replays[0]):
        rows.setdefault(call.name, []).append(at)
    ops = [
        OpProfile(
            name,
            calls=len(calls),
            nbytes=sum(replays[0][at].nbytes for at in calls),
            seconds=median(sum(replay[at].seconds for at in calls) for replay in replays),
        )
        for name, calls in rows.items()
    ]
    nbytes = sum(op.nbytes for op in ops)
    num_threads = _C.num_threads()
    bandwidth = median(read_bandwidth(nbytes, num_threads))
    return Profile(
        ops=sorted(ops, key=lambda op: -op.seconds),
        seconds=median(sum(call.seconds for call in replay) for replay in replays),
        read_bandwidth=bandwidth,
        batch_size=batch_size,
        depth=depth,
        num_threads=num_threads,
        load=meter.load(),
    )


def read_bandwidth(nbytes: int, num_threads: int, repeats: int = 7) -> list[float]:
    """Bytes per second that threads read from `nbytes` of memory, `repeats` times.

    Each thread runs the C library's memchr over its part for an absent byte: a plain vector loop
    that the interpreter calls without the GIL. The memory is in huge pages, where the system has
    them. Buffers smaller than the last-level cache measure the cache.
    """
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    memchr.restype = ctypes.c_void_p
    part = max(nbytes // num_threads // 4096, 1) * 4096
    passes = max(1, (256 << 20) // nbytes)  # small buffers: hide the start of the threads
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    buffer = mmap.mmap(-1, part * num_threads, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    ctypes.memset(address, 1, part * num_threads)

    def read(index: int) -> None:
        for _ in range(passes):
            memchr(address + index * part, 0, part)

    def read_all() -> float:
        start = time.perf_counter()
        workers = [threading.Thread(target=read, args=(i,)) for i in range(1, num_threads)]
        for worker in workers:
            worker.start()
        read(0)
        for worker in workers:
            worker.join()
        return part * num_threads * passes / (time.perf_counter() - start)

    read_all()
    return [read_all() for _ in range(repeats)]
