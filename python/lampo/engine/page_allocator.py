# SPDX-License-Identifier: Apache-2.0
"""The pages of the KV cache: their holders, and the prefix cache of full pages.

A full page is identified by the chain of all tokens up to its end, and never written again. All
sequences that begin with these tokens share it. Without holders it stays until its memory is
needed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

# Placeholder in a sequence's list of pages for a page outside the windows of all layers.
FREED = -1


class PrefixChain:
    """Keys of the full pages of a token sequence: hashes of the previous key and the tokens.

    Args:
        page_size: tokens per page.
        salt: sequences with different salts share no pages.
    """

    def __init__(self, page_size: int, salt: bytes = b"") -> None:
        self._page_size = page_size
        self._keys = [hashlib.blake2b(salt, digest_size=32).digest()]
        self._tokens: list[bytes] = [b""]

    def extend(self, token_ids: Sequence[int], num_pages: int) -> None:
        """Computes the missing ones of the first `num_pages` keys."""
        for i in range(len(self._keys) - 1, num_pages):
            page = token_ids[i * self._page_size : (i + 1) * self._page_size]
            tokens = np.array(page, dtype=np.int32).tobytes()
            self._tokens.append(tokens)
            self._keys.append(hashlib.blake2b(self._keys[-1] + tokens, digest_size=32).digest())

    def page(self, index: int) -> tuple[bytes, bytes, bytes]:
        """(key, parent's key, tokens) of a page that :meth:`extend` has reached."""
        return self._keys[index + 1], self._keys[index], self._tokens[index + 1]


class PageAllocator:
    """`num_pages` pages: each is free, cached (known by its tokens, without a holder) or in use.

    FREED entries in lists of pages are skipped.

    Args:
        num_pages: of the pool.
        page_size: tokens per page.
        prefix_caching: whether full pages are cached.
        window: the layers' largest, in positions with the current one; None: unlimited.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        prefix_caching: bool = True,
        window: int | None = None,
    ) -> None:
        self.window = window
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefix_caching = prefix_caching
        self.ref_counts = [0] * num_pages
        self.num_ever_used = 0  # all pages below this number have been in use
        # Last in, first out: a new sequence gets pages that are in memory already.
        self._free = list(range(num_pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._page_of: dict[bytes, int] = {}
        self._known: dict[int, tuple[bytes, bytes, bytes]] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that :meth:`allocate` can give: the free ones and the cached ones."""
        return len(self._free) + len(self._cached)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Pages with one holder.

        Raises:
            MemoryError: fewer are available; nothing has changed.
        """
        if count > self.num_available:
            raise MemoryError(f"KV cache: {count} pages wanted, {self.num_available} available")
        while len(self._free) < count:
            self._forget(next(iter(self._cached)))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self.ref_counts[page] = 1
        self.num_ever_used = max(self.num_ever_used, 1 + max(pages, default=-1))
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Adds a holder to all pages."""
        for page in pages:
            if page == FREED:
                continue
            if self.ref_counts[page] == 0:
                del self._cached[page]
            self.ref_counts[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Removes a holder from all pages; the first ones are the last to be evicted."""
        for page in reversed(pages):
            if page == FREED:
                continue
            self.ref_counts[page] -= 1
            if self.ref_counts[page] == 0:
                if page in self._known:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def match(self, chain: PrefixChain, num_pages: int) -> list[int]:
        """The longest cached prefix of the chain, of at most `num_pages` pages.

        All pages seen by the token after it are known; those before the window are FREED. The
        caller becomes a holder. Tokens are compared, not keys alone.
        """
        pages = [self._find(chain.page(i)) for i in range(num_pages)]
        if self.window is None:
            end = next((i for i, page in enumerate(pages) if page is None), num_pages)
        else:
            end = self._longest_seen(pages)
        first = self.first_seen(end * self.page_size)
        found = [FREED] * first + [page for page in pages[first:end] if page is not None]
        self.share(found)
        return found

    def first_seen(self, position: int) -> int:
        """The first page that a token at `position` sees."""
        if self.window is None:
            return 0
        return max(position - self.window + 1, 0) // self.page_size

    def _longest_seen(self, pages: list[int | None]) -> int:
        """Length of the longest prefix after which a token sees known pages only."""
        longest = run = 0
        for end, page in enumerate(pages, start=1):
            run = 0 if page is None else run + 1
            if run >= end - self.first_seen(end * self.page_size):
                longest = end
        return longest

    def _find(self, wanted: tuple[bytes, bytes, bytes]) -> int | None:
        page = self._page_of.get(wanted[0])
        return page if page is not None and self._known[page] == wanted else None

    def register(self, page: int, chain: PrefixChain, index: int) -> None:
        """Registers a page in use as the chain's page `index`: it is full and never changes."""
        known = chain.page(index)
        if self.prefix_caching and known[0] not in self._page_of:
            self._page_of[known[0]] = page
            self._known[page] = known

    def drop_cache(self) -> None:
        """Frees all cached pages, and unregisters those in use."""
        for page in list(self._known):
            self._forget(page)

    def recount(self, holders: Iterable[Sequence[int]]) -> None:
        """Rebuilds the tables after an interruption at any point: only `holders` hold pages."""
        self.ref_counts = [0] * self.num_pages
        for pages in holders:
            for page in pages:
                if page != FREED:
                    self.ref_counts[page] += 1
        # A page may be in one of the two tables only.
        self._known = {p: k for p, k in self._known.items() if self._page_of.get(k[0]) == p}
        self._page_of = {known[0]: page for page, known in self._known.items()}
        idle = [page for page in range(self.num_pages) if self.ref_counts[page] == 0]
        old = [page for page in self._cached if page in self._known and not self.ref_counts[page]]
        self._cached = OrderedDict.fromkeys(old + [page for page in idle if page in self._known])
        self._free = [page for page in reversed(idle) if page not in self._known]

    def books(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(free pages, cached pages, known pages, number of holders per page)."""
        return (
            tuple(self._free),
            tuple(self._cached),
            tuple(self._page_of.values()),
            tuple(self.ref_counts),
        )

    def _forget(self, page: int) -> None:
        del self._page_of[self._known.pop(page)[0]]
        if page in self._cached:
            del self._cached[page]
            self._free.append(page)
