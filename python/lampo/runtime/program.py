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
        name: of the op; a linear's with the shape and the format of its weight.
        nbytes: what it had to move, each input and output once.
        seconds: from the end of the op before, the barrier after it included.
    """

    name: str
    nbytes: int
    seconds: float


class Program:
    """The ops that one thread calls on CPU tensors while :meth:`record` is open.

    They run as they are recorded. :meth:`replay` runs them again over the same tensors, whose
    values may have changed: the threads walk the whole list with a barrier after each op, and
    Python is not asked. Eager ops and replayed ones give equal bits.

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
        """Record what this thread calls inside the block. Once per program.

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
        """Replay with a clock. Reading it costs about 0.05 us an op."""
        return [OpTiming(*row) for row in self._native.profile()]

    def __len__(self) -> int:
        return len(self._native)
