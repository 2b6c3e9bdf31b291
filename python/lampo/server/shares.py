# SPDX-License-Identifier: Apache-2.0
"""Shares: one client cannot take all of the engine's places."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque


class Shares:
    """Places that clients hold; a call waits while its client holds as many as it may.

    Args:
        limit: places for one client. A larger call gets them while its client holds none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[tuple[int, asyncio.Future[None]]]] = defaultdict(
            deque
        )

    async def take(self, client: str | None, count: int) -> None:
        """Waits for `count` places, in the order of the client's calls. None has no limit."""
        if client is None:
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting[client].append((count, place))
        self._grant(client)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give(client, count)
            raise

    def give(self, client: str | None, count: int) -> None:
        """Returns places that were taken."""
        if client is not None:
            self._held[client] -= count
            self._grant(client)

    def _grant(self, client: str) -> None:
        waiting = self._waiting[client]
        while waiting:
            count, place = waiting[0]
            held = self._held[client]
            if not place.cancelled():
                if held > 0 and held + count > self._limit:
                    return
                self._held[client] = held + count
                place.set_result(None)
            waiting.popleft()
        del self._waiting[client]
        if not self._held[client]:
            del self._held[client]
