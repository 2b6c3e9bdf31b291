# SPDX-License-Identifier: Apache-2.0
"""Search for stop strings in a growing text, at a cost independent of their number.

An Aho-Corasick automaton: its state is the longest suffix of the text that begins a stop string. A
character costs one dictionary look-up, plus one per character that the state loses, so a
stream of n characters costs at most 2n. Building takes time proportional to the strings' lengths.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """The stop strings of a request; immutable, so its completions share it.

        state, stop, end = stops.advance(0, "the text")

    held_back: per state, number of characters at the end of the text that a stream holds back, as
        they may begin a stop string.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._goto: list[dict[str, int]] = [{}]
        self._found: list[str | None] = [None]  # the longest stop string that ends here
        depth = [0]
        for string in strings:
            state = 0
            for char in string:
                following = self._goto[state].get(char)
                if following is None:
                    following = len(self._goto)
                    self._goto[state][char] = following
                    self._goto.append({})
                    self._found.append(None)
                    depth.append(depth[state] + 1)
                state = following
            self._found[state] = string
        self._fail = [0] * len(depth)
        self.held_back = depth
        self._link()

    def _link(self) -> None:
        """Links every state to that of its longest proper suffix, shortest states first."""
        goto, fail, found, held_back = self._goto, self._fail, self._found, self.held_back
        queue = list(goto[0].values())
        for state in queue:  # grows while it is read
            link = fail[state]
            if found[state] is None:
                found[state] = found[link]
            if not goto[state]:  # a leaf: its matches continue as its suffix's do
                held_back[state] = held_back[link]
            for char, following in goto[state].items():
                end = link
                while end and char not in goto[end]:
                    end = fail[end]
                fail[following] = goto[end].get(char, 0)
                queue.append(following)

    def advance(
        self, state: int, text: str, *, ignore_matches: bool = False
    ) -> tuple[int, str | None, int]:
        """Reads characters until a stop string is complete.

        state: 0 at the beginning, then what the last call returned.
        Returns: the new state, the stop string (of several that end at the same character, the
            longest) and how many characters of `text` were read; None and all without a match.
        """
        goto, fail, found = self._goto, self._fail, self._found
        for i, char in enumerate(text):
            following = goto[state].get(char)
            while following is None and state:
                state = fail[state]
                following = goto[state].get(char)
            state = following or 0
            if found[state] is not None and not ignore_matches:
                return state, found[state], i + 1
        return state, None, len(text)
