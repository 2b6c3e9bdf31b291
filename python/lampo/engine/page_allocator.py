# SPDX-License-Identifier: Apache-2.0
"""Who holds which page of the KV cache, and which pages of finished work can be used again.

A page that has been filled is known by the chain of all tokens up to its end, and never written
again. It may then be shared by any sequence that begins with the same tokens, and stays, when the
last of them has left, until the memory is wanted.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

# Stands in a sequence's list of pages for one that fell out of all layers' windows.
FREED = -1


class PrefixChain:
    """The keys of the full pages of one token sequence, each made of the key before and its tokens.

    Args:
        page_size: tokens per page.
        salt: sequences of different salts share nothing.
    """

    def __init__(self, page_size: int, salt: bytes = b"") -> None:
        self._page_size = page_size
        self._keys = [hashlib.blake2b(salt, digest_size=32).digest()]
        self._tokens: list[bytes] = [b""]

    def extend(self, token_ids: Sequence[int], num_pages: int) -> None:
        """Computes what is missing of the first `num_pages` keys."""
        for i in range(len(self._keys) - 1, num_pages):
            page = token_ids[i * self._page_size : (i + 1) * self._page_size]
            tokens = np.array(page, dtype=np.int32).tobytes()
            self._tokens.append(tokens)
            self._keys.append(hashlib.blake2b(self._keys[-1] + tokens, digest_size=32).digest())

    def page(self, index: int) -> tuple[bytes, bytes, bytes]:
        """(key, parent's key, tokens) of a page that :meth:`extend` has reached."""
        return self._keys[index + 1], self._keys[index], self._tokens[index + 1]


class PageAllocator:
    """`num_pages` pages: each is free, cached (known by its tokens, held by nobody) or in use.

    Lists of pages may contain FREED, which nobody holds.

    Args:
        num_pages: of the pool.
        page_size: tokens per page.
        prefix_caching: whether filled pages are remembered.
        window: positions that a model's layers see, the current one included; None: all.
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
        self.num_ever_used = 0  # the first so many pages have been in use
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
        """One more holder for each page."""
        for page in pages:
            if page == FREED:
                continue
            if self.ref_counts[page] == 0:
                del self._cached[page]
            self.ref_counts[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less. The first pages of a sequence are the last to be evicted."""
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
        """The longest beginning of the chain that need not be computed, of `num_pages` at most.

        All pages that the token after it sees are known. The caller becomes a holder of each; those
        before the window are FREED. Tokens are compared, keys alone are not trusted.
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
        """The most pages after which a token sees none that is unknown."""
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
        """Makes a page in use known as the chain's page `index`: it is full and stays as it is."""
        known = chain.page(index)
        if self.prefix_caching and known[0] not in self._page_of:
            self._page_of[known[0]] = page
            self._known[page] = known

    def drop_cache(self) -> None:
        """Forgets all cached pages, and what those in use are known by."""
        for page in list(self._known):
            self._forget(page)

    def recount(self, holders: Iterable[Sequence[int]]) -> None:
        """Sets the books right after an interruption at any point: only `holders` hold pages."""
        self.ref_counts = [0] * self.num_pages
        for pages in holders:
            for page in pages:
                if page != FREED:
                    self.ref_counts[page] += 1
        # A page may be known to one of the two tables only.
        self._known = {p: k for p, k in self._known.items() if self._page_of.get(k[0]) == p}
        self._page_of = {known[0]: page for page, known in self._known.items()}
        idle = [page for page in range(self.num_pages) if self.ref_counts[page] == 0]
        old = [page for page in self._cached if page in self._known and not self.ref_counts[page]]
        self._cached = OrderedDict.fromkeys(old + [page for page in idle if page in self._known])
        self._free = [page for page in reversed(idle) if page not in self._known]

    def books(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(free pages, cached pages, known pages, holders of each page)."""
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
