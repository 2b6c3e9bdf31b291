# SPDX-License-Identifier: Apache-2.0
"""Terminal input and output: text of models and users is never markup or control codes."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# C0 controls except tab and newline, DEL, and the C1 controls, which 8-bit terminals interpret.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


def printable(text: str) -> str:
    """The text without control characters, which could control the terminal."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    return " ".join(text.split())


def note(text: str) -> None:
    """One line on stderr."""
    print(f"lampo: {printable(text)}", file=sys.stderr, flush=True)


def console() -> Console:
    """Rich on stderr; strings are printed as they are."""
    from rich.console import Console

    return Console(stderr=True, markup=False, emoji=False, highlight=False)


class TextWriter:
    """Writes a text stream to stdout unbuffered, and tracks whether a line is open.

    Control characters are left out when stdout is a terminal, and kept when it is not.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._for_people = self._stream.isatty()
        self._line_is_open = False

    def write(self, text: str) -> None:
        if self._for_people:
            text = printable(text)
        if text:
            # Before the write: an interrupt may come as soon as a reader sees the text.
            self._line_is_open = not text.endswith("\n")
            self._stream.write(text)
            self._stream.flush()

    def end_line(self) -> None:
        if self._line_is_open:
            self.write("\n")


def read_stdin() -> str:
    """All of stdin as text, without the one newline that ends it.

    Raises: ValueError if it is not UTF-8.
    """
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt: stdin is not UTF-8, at byte {error.start}") from None
    return text.removesuffix("\n").removesuffix("\r")


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        note(prefix + one_line(record.getMessage()))


def show_logging(quiet: bool) -> None:
    """Sends the library's log to stderr: its decisions, or warnings only."""
    logger = logging.getLogger("lampo")
    for handler in [h for h in logger.handlers if isinstance(h, _Handler)]:
        logger.removeHandler(handler)
    logger.addHandler(_Handler())
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
