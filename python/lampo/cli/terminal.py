# SPDX-License-Identifier: Apache-2.0
"""Terminal input and output: text of models and users is never markup or control codes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# C0 controls except tab and newline, DEL, and the C1 controls, which 8-bit terminals interpret.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del _CONTROLS[ord("\n")], _CONTROLS[ord("\t")]


_LONGEST_LINE = 1000


def printable(text: str) -> str:
    """The text without control characters, which could control the terminal."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """The text in one line of bounded length; of a longer one, beginning and end."""
    text = " ".join(text.split())
    if len(text) <= _LONGEST_LINE:
        return text
    half = _LONGEST_LINE // 2
    return f"{text[:half]} ... ({len(text) - 2 * half} characters) ... {text[-half:]}"


class StatusLine:
    """A line at the end of stderr that says what is going on, replaced by the next output.

    There is none where stderr is no terminal, or one without control codes.
    """

    def __init__(self) -> None:
        self._text = ""

    def show(self, text: str) -> None:
        """Replaces the line."""
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._text = text
            width = columns(sys.stderr) - 1  # the last column would start another line
            sys.stderr.write(f"\r{printable(f'lampo: {text}')[:width]}\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._text:
            self._text = ""
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    @contextlib.contextmanager
    def cleared(self) -> Iterator[None]:
        """Clears the line while a block writes others, and shows it again."""
        text = self._text
        self.clear()
        yield
        if text:
            self.show(text)


status = StatusLine()


def columns(stream: TextIO) -> int:
    """The width of a stream's terminal; 80 if unknown."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def note(text: str) -> None:
    """One line on stderr."""
    with status.cleared():
        print(f"lampo: {printable(text)}", file=sys.stderr, flush=True)


def report_error(error: Exception, before: str = "", after: str = "") -> None:
    """An error as one line on stderr, after its traceback if LAMPO_DEBUG is set."""
    status.clear()
    print_traceback(error)
    note(f"error: {before}{error_text(error)}{after}")


def print_traceback(error: BaseException) -> None:
    """The traceback on stderr, that of the errors behind it included, if LAMPO_DEBUG is set."""
    if not os.environ.get("LAMPO_DEBUG"):
        return
    import traceback

    behind: BaseException | None = error
    while behind is not None:
        behind.__suppress_context__ = False  # of `raise ... from None`
        behind = behind.__cause__ or behind.__context__
    with status.cleared():
        traceback.print_exception(error)


def error_text(error: Exception) -> str:
    """An error's message in one line."""
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return one_line(f"{named}{error.strerror}")
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory"
    return one_line(str(error)) or type(error).__name__


def console(stream: TextIO | None = None) -> Console:
    """Rich on a stream, stderr if none is given; strings are printed as they are."""
    from rich.console import Console

    return Console(file=stream or sys.stderr, markup=False, emoji=False, highlight=False)


def print_table(table: Table, stream: TextIO | None = None, *, fold: bool = False) -> None:
    """A table on stdout or another stream.

    Args:
        table: of any width: lines are never cut, and a narrow terminal wraps them.
        stream: stdout, if absent.
        fold: whether the table is fitted to a terminal's width first, its columns wrapped.
    """
    from rich.measure import Measurement

    out = console(stream or sys.stdout)
    if not (fold and out.is_terminal):
        unbounded = out.options.update(max_width=10_000)
        out.width = max(Measurement.get(out, unbounded, table).maximum, 1)
    out.print(table)


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


def read_text(file: str) -> str:
    """All of a file, or of stdin for "-", as text, without the one newline that ends it.

    Raises: ValueError: it is not UTF-8. OSError: it cannot be read.
    """
    if file == "-":
        source, data = "stdin", sys.stdin.buffer.read()
    else:
        source, data = file, Path(file).expanduser().read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt: {source} is not UTF-8, at byte {error.start}") from None
    return text.removesuffix("\n").removesuffix("\r")


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        note(prefix + one_line(record.getMessage()))
        if record.exc_info is not None and record.exc_info[1] is not None:
            print_traceback(record.exc_info[1])


def show_logging(quiet: bool) -> None:
    """Sends the library's log to stderr: its decisions, or warnings only."""
    logger = logging.getLogger("lampo")
    for handler in [h for h in logger.handlers if isinstance(h, _Handler)]:
        logger.removeHandler(handler)
    logger.addHandler(_Handler())
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
