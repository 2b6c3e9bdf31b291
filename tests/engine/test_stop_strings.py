# SPDX-License-Identifier: Apache-2.0
"""Stop strings against a naive search, and what a hostile set of them costs."""

from __future__ import annotations

import statistics
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lampo.engine.stop_strings import StopStrings

# Few letters, so that strings overlap, contain and begin one another.
STOPS = st.lists(st.text("ab🙂", min_size=1, max_size=6), min_size=1, max_size=8)
PIECES = st.lists(st.text("ab🙂", max_size=5), max_size=20)


def first_stop(stops: list[str], text: str) -> tuple[int, str] | None:
    """End of the first complete stop string, and the longest that ends there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


def held_back(stops: list[str], text: str) -> int:
    """Length of the longest end of the text that begins a stop string without completing it."""
    return max(
        size
        for size in range(len(text) + 1)
        if size == 0 or any(len(s) > size and s.startswith(text[-size:]) for s in stops)
    )


@given(STOPS, PIECES)
def test_first_completed_stop_string_however_the_text_is_cut(stops, pieces):
    automaton = StopStrings(stops)
    expected = first_stop(stops, "".join(pieces))
    state, before = 0, 0
    for piece in pieces:
        state, stop, read = automaton.advance(state, piece)
        if stop is not None:
            assert (before + read, stop) == expected
            return
        assert read == len(piece)
        before += read
        assert automaton.held_back[state] == held_back(stops, "".join(pieces)[:before])
    assert expected is None


@given(STOPS, PIECES)
def test_ignored_matches_leave_the_state_right(stops, pieces):
    automaton, state, text = StopStrings(stops), 0, ""
    for piece in pieces:
        state, stop, read = automaton.advance(state, piece, ignore_matches=True)
        text += piece
        assert (stop, read) == (None, len(piece))
        assert automaton.held_back[state] == held_back(stops, text)


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        # Each ends in a letter that never comes; all the text might begin them.
        ([chr(0x100 + i) + "a" * 1023 for i in range(64)], "a"),
        (["a" * 1023 + chr(0x100 + i) for i in range(64)], "a"),
        (["a" * i + "b" for i in range(960, 1024)], "a"),
        (["ab" * 511 + "a" + chr(0x100 + i) for i in range(64)], "ab"),
    ],
)
def test_hostile_stop_strings_cost_microseconds(stops, text):
    begin = time.perf_counter()
    automaton = StopStrings(stops)
    assert time.perf_counter() - begin < 2.0  # 64 KiB of stop strings: 50 ms on a quiet machine
    state, times = 0, []
    for _ in range(2000):  # tokens of four characters
        begin = time.perf_counter()
        state, stop, _ = automaton.advance(state, (text * 4)[:4])
        times.append(time.perf_counter() - begin)
        assert stop is None
    assert statistics.median(times) < 20e-6
    assert sum(times) < 2000 * 100e-6
