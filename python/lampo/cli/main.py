# SPDX-License-Identifier: Apache-2.0
"""The entry point: typer parses the command line into a job, which `main` runs."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from lampo.cli.job import EXIT_CLOSED_PIPE, EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_USER

# Raised by the library for bad arguments, files and environments; messages are one line.
_USER_ERRORS = (ValueError, TypeError, MemoryError, OSError)


def program() -> NoReturn:
    """The shell's `lampo`: `main` in a process of its own, with a quick start and end.

    Garbage collection is off until `open_llm` returns: it takes 0.2 s, and modules and the model
    are no garbage. Process exit skips the destruction of torch, which takes 0.4 s.
    """
    gc.disable()
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = main()
    except KeyboardInterrupt:  # a second one, while the first was handled
        code = EXIT_INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the answer is complete
    if "torch" in sys.modules:
        _exit_now(code)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The handler of SIGINT: KeyboardInterrupt, but during an import the end of the process.

    Modules swallow exceptions while they are imported: many probe for optional parts.
    """
    if _is_importing(frame):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\n")
        _exit_now(EXIT_INTERRUPTED)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False


def _exit_now(code: int) -> NoReturn:
    """Ends the process without the interpreter's shutdown; output is flushed first."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, absent, or without a reader
            stream.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors become one line on stderr."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _clear_status()
        if sys.stderr.isatty():  # leaves the line on which the terminal has shown ^C
            print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return EXIT_CLOSED_PIPE
    except SystemExit as error:  # rich ends the program itself
        if isinstance(error.__context__, BrokenPipeError):
            return EXIT_CLOSED_PIPE
        raise
    except Exception as error:
        return _report(error)


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters missing in a terminal are no error
            stream.reconfigure(errors="replace")
    from lampo.cli.app import command

    job: object = command().main(arguments, prog_name="lampo", standalone_mode=False)
    if callable(job):
        code: int = job()
        return code
    return job if isinstance(job, int) else 0  # --help and the like are complete


def _clear_status() -> None:
    from lampo.cli.terminal import status

    status.clear()


def _report(error: Exception) -> int:
    from lampo.cli.terminal import note, one_line, print_traceback, report_error

    if type(error).__name__ == "Abort":  # Ctrl-C in older versions of typer
        return EXIT_INTERRUPTED
    if hasattr(error, "format_message"):  # a usage error, found by typer
        print_traceback(error)
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "lampo"
        message = one_line(error.format_message())
        stop = "" if message.endswith((".", "?", ")")) else "."
        note(f"error: {message}{stop} See '{command} --help'.")
        return EXIT_USER
    if isinstance(error, _USER_ERRORS):
        report_error(error)
        return EXIT_USER
    name = type(error).__name__
    report_error(error, f"{name}: ", " (run with LAMPO_DEBUG=1 for the traceback)")
    return EXIT_INTERNAL


def _discard_output() -> None:
    """Redirects stdout to the null device, so that the interpreter's last flush cannot fail."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
    except (OSError, ValueError):
        pass
