# SPDX-License-Identifier: Apache-2.0
"""One engine for several threads."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from lampo.engine.llm_engine import LLMEngine
from lampo.engine.request import Request
from lampo.outputs import StreamOutput

Sink = Callable[[StreamOutput], None]

_engines: weakref.WeakSet[SharedEngine] = weakref.WeakSet()
_exiting = threading.Event()
_EXIT_TIMEOUT = 10.0  # seconds


@atexit.register
def _end_daemon_threads() -> None:
    """Waits for steps of daemon threads, which make no further ones.

    The end of the interpreter would interrupt them inside of libraries that abort the process then.
    """
    _exiting.set()
    for engine in list(_engines):
        if engine.lock.acquire(timeout=_EXIT_TIMEOUT):
            engine.lock.release()


class SharedEngine:
    """An engine and its lock. A step serves all requests; its thread passes the pieces of a request
    to the request's sink, with the lock held.

    Attributes:
        lock: held while the engine works; take it to use `engine`.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        self.lock = threading.Lock()
        self._sinks: dict[str, Sink] = {}
        _engines.add(self)

    def add(self, request: Request, sink: Sink) -> None:
        """Adds a request. Raises: as :meth:`LLMEngine.add`. Needs the lock."""
        self.engine.add(request)
        self._sinks[request.request_id] = sink

    def abort(self, request_id: str) -> None:
        """Ends a request, if it has not ended; its sink gets the last pieces. Needs the lock."""
        self._deliver(self.engine.abort(request_id))

    def step(self) -> None:
        """One step. Needs the lock.

        Raises: SystemExit: in a daemon thread while the process exits.
        """
        if _exiting.is_set() and threading.current_thread().daemon:
            raise SystemExit
        self._deliver(self.engine.step())

    @contextmanager
    def submitted(self, requests: Iterable[Request], sink: Sink) -> Iterator[None]:
        """Adds requests, and aborts at the end those that have not ended."""
        added: list[str] = []
        try:
            with self.lock:
                for request in requests:
                    self.add(request, sink)
                    added.append(request.request_id)
            yield
        finally:
            with self.lock:
                for request_id in added:
                    if request_id in self._sinks:
                        self.abort(request_id)

    def steps_until(self, ended: Callable[[], bool]) -> Iterator[None]:
        """Makes steps, alternating with other threads, until `ended` is true."""
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
