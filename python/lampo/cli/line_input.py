# SPDX-License-Identifier: Apache-2.0
"""The user's messages to `lampo chat`: typed at a terminal, or lines of a pipe."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lampo.cli.terminal import note

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_PROMPT = "> "
_CONTINUED = ". "


def piped_lines() -> Iterator[str]:
    """The lines of stdin."""
    if isinstance(sys.stdin, io.TextIOWrapper):  # invalid UTF-8 does not end the conversation
        sys.stdin.reconfigure(errors="replace")
    yield from sys.stdin


def typed_lines(commands: Iterable[str], settings: Sequence[str]) -> Iterator[str]:
    """Messages typed at a terminal, until Ctrl-D; there is a history between runs.

    Alt-Enter, or a backslash before Enter, begins another line; pastes keep their lines. Ctrl-C
    clears what has been typed.

    Args:
        commands: words that complete the beginning of a message.
        settings: words that complete what follows "/set".

    Raises: KeyboardInterrupt: a second Ctrl-C in a row, at an empty line. One alone may have been
        meant for the answer that has just ended.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        _PROMPT,
        multiline=True,  # Enter is bound by _keys
        prompt_continuation=_CONTINUED,
        key_bindings=_keys(),
        history=_history(),
        completer=_completer(tuple(commands), settings),
        complete_while_typing=False,
        output=create_output(always_prefer_tty=True),  # stderr, if stdout is a pipe
    )
    interrupted = False
    while True:
        try:
            line = session.prompt()
        except EOFError:
            return
        except KeyboardInterrupt:
            if interrupted and not session.default_buffer.text:
                raise
            interrupted = True
            note("another Ctrl-C, or Ctrl-D, leaves")
            continue
        interrupted = False
        yield line


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer(commands: Sequence[str], settings: Sequence[str]) -> Completer:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            command, space, text = document.text_before_cursor.partition(" ")
            if command in ("/save", "/load") and space:
                yield from paths.get_completions(Document(text), complete_event)
            elif command == "/set" and space:
                yield from (Completion(s, -len(text)) for s in settings if s.startswith(text))
            elif command.startswith("/") and not space:
                yield from (Completion(c, -len(command)) for c in commands if c.startswith(command))

    return Commands()


def history_file() -> Path:
    """`lampo/chat_history` in the user's folder of state."""
    folder = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(folder):
        fallback = Path.home() / ".local" / "state"
        folder = os.environ.get("LOCALAPPDATA", "") if sys.platform == "win32" else ""
        folder = folder or str(fallback)
    return Path(folder) / "lampo" / "chat_history"


def _history() -> History:
    """The history of earlier runs, readable by the user alone; of this run if it has no place."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
