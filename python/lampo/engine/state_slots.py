# SPDX-License-Identifier: Apache-2.0
"""The slots of states: those of running sequences, and saved states for the prefix cache.

A state is valid for one length of its sequence. Every `distance` tokens, at the edge of a page, it
is copied to another slot and saved under the key of the chain of all tokens up to there: sequences
that begin with the same tokens continue from the copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable


class StateSlots:
    """`num_slots` slots: each is free, held by a sequence, or has a saved state.

    Args:
        num_slots: of the pool.
        copy: copies the states of a slot to another.
        distance: tokens from one saved state of a sequence to the next; 0: none is saved.

    Attributes:
        distance: as given.
        num_restored: sequences that have begun with a saved state.
    """

    def __init__(self, num_slots: int, copy: Callable[[int, int], None], distance: int = 0) -> None:
        self.distance = distance
        self.num_restored = 0
        self._num_slots = num_slots
        self._copy = copy
        self._free = list(range(num_slots - 1, -1, -1))
        self._saved: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first

    @property
    def num_available(self) -> int:
        """Slots that :meth:`take` can give: the free ones and those of saved states."""
        return len(self._free) + len(self._saved)

    def is_edge(self, position: int) -> bool:
        """Whether a state is saved after this number of tokens."""
        return self.distance > 0 and position % self.distance == 0

    def tokens_to_edge(self, position: int) -> int | None:
        """Tokens from a position to the next one at which states are saved; None: they are not."""
        return self.distance - position % self.distance if self.distance else None

    def is_saved(self, key: bytes) -> bool:
        return key in self._saved

    def take(self, source: int | None = None) -> int:
        """A slot for a sequence, with a copy of another sequence's state if `source` is its slot.

        A saved state is dropped if no slot is free: there are as many slots as sequences at least.
        """
        slot = self._free[-1] if self._free else self._drop_oldest()
        if source is not None:
            self._copy(source, slot)
        return self._free.pop()

    def restore(self, key: bytes) -> int:
        """A slot for a sequence, with a copy of the state saved under `key`."""
        self._saved.move_to_end(key)
        slot = self.take(self._saved[key])
        self.num_restored += 1
        return slot

    def save(self, key: bytes, slot: int) -> None:
        """Saves a copy of the state of a sequence's slot, if there is room without its own."""
        if key in self._saved:
            self._saved.move_to_end(key)
        elif self._free or self._saved:
            self._saved[key] = self.take(slot)

    def release(self, slot: int) -> None:
        """Frees a sequence's slot."""
        self._free.append(slot)

    def drop_saved(self) -> None:
        """Drops all saved states."""
        while self._saved:
            self._drop_oldest()

    def recount(self, held: Iterable[int]) -> None:
        """Rebuilds the list of free slots after an interruption at any point."""
        held = set(held)
        self._saved = OrderedDict((k, slot) for k, slot in self._saved.items() if slot not in held)
        used = held | set(self._saved.values())
        self._free = [slot for slot in range(self._num_slots - 1, -1, -1) if slot not in used]

    def books(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(free slots, slots of saved states)."""
        return tuple(self._free), tuple(self._saved.values())

    def _drop_oldest(self) -> int:
        _, slot = self._saved.popitem(last=False)
        self._free.append(slot)
        return slot
