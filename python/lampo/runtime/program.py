# SPDX-License-Identifier: Apache-2.0
"""A step of a model, recorded once and replayed by one native call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lampo import _C
from lampo.ops._registry import keep_arguments


@dataclass(frozen=True)
class OpTiming:
    """One op of a replay.

    Attributes:
        name: the op's name; for a linear with the shape and the format of its weight.
        nbytes: bytes that the op must move, each input and output once.
        seconds: time since the end of the previous op, the barrier after this one included.
    """

    name: str
    nbytes: int
    seconds: float


class Program:
    """The ops that one thread calls on CPU tensors inside a block of :meth:`record`.

    Ops run while they are recorded. :meth:`replay` runs them again on the same tensors with their
    current values: the threads execute the whole list with a barrier after each op, without
    Python. Eager and replayed ops give equal bits.

    Token ids, slots and page tables are checked again before a replay. The tensors are kept alive.

    Example:
        >>> program = Program()
        >>> with program.record():
        ...     ops.linear(x, weight, out=y)
        >>> x.copy_(other)
        >>> program.replay()
    """

    def __init__(self) -> None:
        self._native = _C.Program()
        self._kept: list[object] = []

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record the ops that this thread calls inside the block. Once per program.

        Raises:
            RuntimeError: this thread records already, or the program has been recorded.
        """
        self._native.begin()
        try:
            with keep_arguments(self._kept):
                yield
        finally:
            self._native.end()

    def replay(self) -> None:
        """Run the ops again.

        Raises:
            ValueError: an id, slot, page or length in the tensors is out of range; nothing has run.
            RuntimeError: the number of threads differs from that at the recording.
        """
        self._native.replay()

    def profile(self) -> list[OpTiming]:
        """Replay with a clock. Reading it takes about 0.05 us per op."""
        return [OpTiming(*row) for row in self._native.profile()]

    def __len__(self) -> int:
        return len(self._native)
