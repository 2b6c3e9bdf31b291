# SPDX-License-Identifier: Apache-2.0
"""One engine for several threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lampo.engine.llm_engine import LLMEngine
from lampo.engine.sequence import Sequence
from lampo.outputs import StreamOutput

Sink = Callable[[StreamOutput], None]


class SharedEngine:
    """An engine and its lock. A step serves all requests, whichever thread makes it; the pieces of
    a request go to its sink, called by that thread and with the lock held.

    Attributes:
        lock: held while the engine works; take it to use `engine`.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        self.lock = threading.Lock()
        self._sinks: dict[str, Sink] = {}
        self._numbers = itertools.count()

    def new_request_id(self) -> str:
        return f"request-{next(self._numbers)}"

    def add(self, request_id: str, sequences: list[Sequence], sink: Sink, **options: Any) -> None:
        """Adds a request; options and errors are those of :meth:`LLMEngine.add_request`. Locked."""
        self.engine.add_request(request_id, sequences, **options)
        self._sinks[request_id] = sink

    def abort(self, request_id: str) -> None:
        """Ends a request, if it has not ended; its sink gets the last pieces. Locked."""
        self._deliver(self.engine.abort(request_id))

    def step(self) -> None:
        """One step. Locked."""
        self._deliver(self.engine.step())

    @contextmanager
    def submitted(
        self, requests: Iterable[tuple[str | None, list[Sequence]]], sink: Sink
    ) -> Iterator[list[str]]:
        """Adds (prompt, completions) pairs, and aborts what is left of them at the end.

        Yields:
            their ids.
        """
        request_ids: list[str] = []
        try:
            with self.lock:
                for prompt, sequences in requests:
                    request_ids.append(self.new_request_id())
                    self.add(request_ids[-1], sequences, sink, prompt=prompt)
            yield request_ids
        finally:
            with self.lock:
                for request_id in request_ids:
                    if request_id in self._sinks:
                        self.abort(request_id)

    def steps_until(self, ended: Callable[[], bool]) -> Iterator[None]:
        """Makes steps, in turn with other threads, until the caller has what it wants."""
        while not ended():
            with self.lock:
                if not ended():
                    self.step()
            yield

    def _deliver(self, pieces: list[StreamOutput]) -> None:
        for piece in pieces:
            if piece.request is None:
                self._sinks[piece.request_id](piece)
            else:
                self._sinks.pop(piece.request_id)(piece)
