# SPDX-License-Identifier: Apache-2.0
"""Text of errors: one line of bounded length, whatever a value or a library's message holds."""

from __future__ import annotations

import reprlib

MAX_VALUE_CHARS = 80
MAX_LINE_CHARS = 300

_repr = reprlib.Repr()
_repr.maxlevel = 2
_repr.maxstring = _repr.maxother = _repr.maxlong = MAX_VALUE_CHARS


def shown(value: object) -> str:
    """repr(value), shortened before long parts are formatted."""
    try:
        text = _repr.repr(value)
    except ValueError:  # Python formats integers of up to 4300 digits
        text = f"a {type(value).__name__} that cannot be shown"
    return shortened(text, MAX_VALUE_CHARS)


def shortened(text: str, limit: int = MAX_LINE_CHARS) -> str:
    """The beginning of a text in one line, at most `limit` characters."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
