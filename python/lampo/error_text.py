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
    if isinstance(value, int) and value.bit_length() > 1024:  # Python formats 4300 digits at most
        return f"an integer of {value.bit_length()} bits"
    return shortened(_repr.repr(value), MAX_VALUE_CHARS)


def shortened(text: str, limit: int = MAX_LINE_CHARS) -> str:
    """The beginning of a text in one line, at most `limit` characters."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
