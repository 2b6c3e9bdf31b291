# SPDX-License-Identifier: Apache-2.0
"""Tokens as people can read them: what is invisible or incomplete is spelled out."""

from __future__ import annotations

import unicodedata

_SIGNS = {" ": "·", "\n": "↵", "\t": "⇥"}
# Controls, formats such as those of bidirectional text, private and unassigned code points, line
# and paragraph separators.
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


def shown(data: bytes) -> str:
    """The bytes of a token as text.

    Spaces at its ends become "·", newlines "↵", tabs "⇥"; bytes that are no whole character, and
    code points that are invisible or steer the text around them, are escaped.
    """
    text = data.decode("utf-8", "backslashreplace")
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if inner else len(text)
    after = len(text) - before - len(inner)
    parts = ["·" * before, *map(_shown_character, inner), "·" * after]
    if inner and unicodedata.combining(inner[0]):
        parts.insert(1, "◌")
    return "".join(parts)


def _shown_character(character: str) -> str:
    if character in _SIGNS and character != " ":
        return _SIGNS[character]
    kind = unicodedata.category(character)
    if kind not in _UNSEEN and (kind != "Zs" or character == " "):
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
