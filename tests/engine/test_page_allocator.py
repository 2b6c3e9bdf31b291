# SPDX-License-Identifier: Apache-2.0
"""Pages and their holders, and prefixes found by their tokens."""

from __future__ import annotations

import pytest

from lampo.engine import page_allocator
from lampo.engine.page_allocator import FREED, PageAllocator, PrefixChain


def chain_of(token_ids: list[int], salt: bytes = b"", page_size: int = 4) -> PrefixChain:
    chain = PrefixChain(page_size, salt)
    chain.extend(token_ids, len(token_ids) // page_size)
    return chain


def filled(allocator: PageAllocator, token_ids: list[int], salt: bytes = b"") -> list[int]:
    """Pages of a sequence that has been computed and has left."""
    pages = allocator.allocate(len(token_ids) // allocator.page_size)
    chain = chain_of(token_ids, salt, allocator.page_size)
    for i, page in enumerate(pages):
        allocator.register(page, chain, i)
    allocator.release(pages)
    return pages


def test_allocate_and_release():
    allocator = PageAllocator(4, 4)
    pages = allocator.allocate(3)
    assert len(set(pages)) == 3 and allocator.num_free == 1
    with pytest.raises(MemoryError, match="KV cache: 2 pages wanted, 1 available"):
        allocator.allocate(2)
    assert allocator.num_free == 1
    allocator.release(pages)
    assert allocator.num_free == 4 and allocator.num_cached == 0
    assert allocator.allocate(1) == pages[:1], "the page that was used last is in memory"


def test_a_prefix_is_found_page_by_page():
    allocator = PageAllocator(8, 4)
    tokens = list(range(12))
    pages = filled(allocator, tokens)
    assert (allocator.num_free, allocator.num_cached) == (5, 3)
    assert allocator.match(chain_of(tokens), 3) == pages
    assert allocator.match(chain_of(tokens), 2) == pages[:2]
    assert allocator.match(chain_of([*tokens[:4], 0, 0, 0, 0, *tokens[8:]]), 3) == pages[:1]
    assert allocator.match(chain_of([9, *tokens[1:]]), 3) == []
    assert allocator.ref_counts[pages[0]] == 3 and allocator.num_cached == 0


def test_salts_share_nothing():
    allocator = PageAllocator(8, 4)
    filled(allocator, list(range(8)), b"one")
    assert allocator.match(chain_of(list(range(8)), b"two"), 2) == []
    assert allocator.match(chain_of(list(range(8))), 2) == []
    assert len(allocator.match(chain_of(list(range(8)), b"one"), 2)) == 2


def test_keys_alone_are_not_trusted(monkeypatch):
    """Tokens with equal keys are not confused."""

    class Constant:
        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr(page_allocator.hashlib, "blake2b", lambda *args, **kwargs: Constant())
    allocator = PageAllocator(8, 4)
    filled(allocator, [1, 2, 3, 4])
    assert allocator.match(chain_of([5, 6, 7, 8]), 1) == []
    assert len(allocator.match(chain_of([1, 2, 3, 4]), 1)) == 1


def test_the_least_recently_used_is_evicted_and_ends_before_beginnings():
    allocator = PageAllocator(4, 4)
    old = filled(allocator, list(range(8)))
    new = filled(allocator, list(range(100, 108)))
    assert allocator.num_free == 0
    assert allocator.allocate(1) == [old[1]]
    assert allocator.match(chain_of(list(range(8))), 2) == old[:1]
    assert allocator.allocate(1) == [new[1]]


def test_a_hit_makes_a_page_recent():
    allocator = PageAllocator(2, 4)
    (old,) = filled(allocator, [1, 2, 3, 4])
    (new,) = filled(allocator, [5, 6, 7, 8])
    allocator.release(allocator.match(chain_of([1, 2, 3, 4]), 1))
    assert allocator.allocate(1) == [new]
    assert allocator.match(chain_of([1, 2, 3, 4]), 1) == [old]


def test_the_same_tokens_computed_twice_are_known_once():
    allocator = PageAllocator(4, 4)
    first = filled(allocator, [1, 2, 3, 4])
    chain = chain_of([1, 2, 3, 4])
    (second,) = allocator.allocate(1)
    allocator.register(second, chain, 0)
    allocator.release([second])
    assert allocator.num_cached == 1 and allocator.num_free == 3
    assert allocator.match(chain, 1) == first


def test_without_prefix_caching_nothing_is_known():
    allocator = PageAllocator(4, 4, prefix_caching=False)
    filled(allocator, [1, 2, 3, 4])
    assert allocator.num_cached == 0 and allocator.num_free == 4


def test_recount_mends_what_an_interruption_left():
    allocator = PageAllocator(8, 4)
    cached = filled(allocator, list(range(8)))
    held = allocator.allocate(2)
    allocator.allocate(1)  # whose holder never got it
    allocator.share(cached[:1])
    allocator.recount([held, [held[0]]])
    free, cached_now, known, ref_counts = allocator.books()
    assert ref_counts[held[0]] == 2 and ref_counts[held[1]] == 1 and sum(ref_counts) == 3
    assert set(cached_now) == set(cached) == set(known)
    assert len(free) == 4
    assert allocator.match(chain_of(list(range(8))), 2) == cached


def test_drop_cache():
    allocator = PageAllocator(4, 4)
    filled(allocator, list(range(8)))
    allocator.drop_cache()
    assert allocator.num_free == 4 and allocator.match(chain_of(list(range(8))), 2) == []


@pytest.mark.parametrize(
    ("known", "window", "expected"),
    [
        # Pages of 4 tokens; a window of 6 needs the last two, a token after n pages sees 5 more.
        ([0, 1, 2, 3, 4], None, [0, 1, 2, 3, 4]),
        ([0, 1, 3, 4], None, [0, 1]),
        ([1, 2, 3, 4], None, []),
        ([0, 1, 2, 3, 4], 6, [FREED, FREED, FREED, 3, 4]),
        ([3, 4], 6, [FREED, FREED, FREED, 3, 4]),
        ([0, 2, 4], 6, [0]),
        ([1, 2, 4], 6, [FREED, 1, 2]),
        ([4], 6, []),
        ([4], 5, [FREED, FREED, FREED, FREED, 4]),
        ([], 1, [FREED] * 5),
        ([0, 1], 100, [0, 1]),
    ],
)
def test_prefixes_behind_a_window(known, window, expected):
    """A beginning counts as found if all is there that the token after it sees."""
    allocator = PageAllocator(8, 4, window=window)
    chain = chain_of(list(range(20)))
    pages = allocator.allocate(5)
    for i in known:
        allocator.register(pages[i], chain, i)
    allocator.release(pages)
    found = allocator.match(chain_of(list(range(20))), 5)
    assert found == [FREED if i == FREED else pages[i] for i in expected]
    assert sum(allocator.ref_counts) == sum(page != FREED for page in found)
    allocator.release(found)
    assert allocator.num_available == 8
