# SPDX-License-Identifier: Apache-2.0
"""The command line at a terminal, typed into a pseudo-terminal: editing, history, the status."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import stat
import sys
import time
from pathlib import Path

import pytest

READY = "\x1b[?2004h"  # bracketed paste is on: the prompt reads
SUPPORT = Path(__file__).parents[1] / "support"
# `lampo` with a model of canned answers; the answer to "wait" takes its time.
PROGRAM = """if True:
    import sys, time
    sys.path.insert(0, sys.argv.pop(1))
    from fake_llm import FakeLLM
    from lampo.cli import chat, generate
    from lampo.cli.main import program
    from lampo.cli.terminal import status

    def answer(prompt):
        return "long " * 30 if prompt.endswith("wait") else f"<{prompt.rpartition('>')[2]!r}>"

    def on_step(step):
        if llm.prompts[-1].endswith("wait"):
            time.sleep(0.2)

    def load(files, options):
        status.show("loading fake")
        time.sleep(0.5)
        status.clear()
        return llm

    llm = FakeLLM(answer, on_step=on_step, max_model_len=2000)
    for command in (chat, generate):
        command.open_files = lambda options, quiet: llm
        command.load_llm = load
    program()
"""


class Screen:
    """A program at a pseudo-terminal."""

    def __init__(self, *arguments: str, state: Path) -> None:
        pid, self._terminal = pty.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells ignore it in the background
            environment = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm"}
            environment["PROMPT_TOOLKIT_NO_CPR"] = "1"
            command = [sys.executable, "-c", PROGRAM, str(SUPPORT), *arguments]
            os.execve(command[0], command, environment)
        self._pid = pid
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str) -> str:
        """What was shown until the text appeared, the text included."""
        deadline = time.monotonic() + 120
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self._terminal], [], [], 1.0)[0]:
                self.text += os.read(self._terminal, 4096).decode("utf-8", "replace")
        before, _, self.text = self.text.partition(text)
        return before + text

    def end(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + 120
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                break
            assert time.monotonic() < deadline, self.text
            if select.select([self._terminal], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):  # it has ended
                    self.text += os.read(self._terminal, 4096).decode("utf-8", "replace")
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def chat(tmp_path: Path) -> Screen:
    screen = Screen("chat", state=tmp_path)
    screen.wait_for("/help lists the commands")
    screen.wait_for(READY)
    return screen


def test_keys(chat: Screen) -> None:
    """Ctrl-C clears a line, and leaves at an empty one when it is the second."""
    chat.type("half a message\x03")
    chat.wait_for("another Ctrl-C, or Ctrl-D, leaves")
    chat.wait_for(READY)
    chat.type("Hi\r")
    chat.wait_for("<'Hi'>")
    chat.wait_for(READY)
    chat.type("\x03")
    chat.wait_for("another Ctrl-C, or Ctrl-D, leaves")
    chat.wait_for(READY)
    chat.type("\x03")
    assert chat.end() == 130


def test_ctrl_d_leaves(chat: Screen) -> None:
    chat.type("\x04")
    assert chat.end() == 0


def test_several_lines(chat: Screen) -> None:
    chat.type("one\\\rtwo\x1b\rthree\r")
    chat.wait_for(r"<'one\ntwo\nthree'>")
    chat.wait_for(READY)
    chat.type("\x1b[200~a paste\nof lines\n\nand more\x1b[201~\r")
    chat.wait_for(r"<'a paste\nof lines\n\nand more'>")
    chat.wait_for(READY)
    chat.type("\x04")
    assert chat.end() == 0


def test_ctrl_c_stops_an_answer(chat: Screen) -> None:
    chat.type("wait\r")
    chat.wait_for("long l")
    chat.type("\x03")
    chat.wait_for(READY)
    chat.type("/stats\r")
    chat.wait_for("interrupted")
    chat.wait_for(READY)
    chat.type("Hi\r")
    chat.wait_for("<'Hi'>")
    chat.wait_for(READY)
    chat.type("/exit\r")
    assert chat.end() == 0


def test_completion(chat: Screen) -> None:
    chat.type("/set tempe\t")
    chat.wait_for("rature")
    chat.type(" 0.5\r")
    chat.wait_for("lampo: temperature 0.5")
    chat.wait_for(READY)
    chat.type("/sta\t")
    chat.wait_for("ts")
    chat.type("\r")
    chat.wait_for("no answer yet")
    chat.wait_for(READY)
    chat.type("\x04")
    assert chat.end() == 0


def test_history(tmp_path: Path) -> None:
    """It lasts between runs, and is the user's alone."""
    for typed in ("first\r", "\x1b[A\r"):  # the second: the key Up
        screen = Screen("chat", "-q", state=tmp_path)
        screen.wait_for(READY)
        screen.type(typed)
        screen.wait_for("<'first'>")
        screen.wait_for(READY)
        screen.type("\x04")
        assert screen.end() == 0
    file = tmp_path / "lampo" / "chat_history"
    assert "first" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_status(tmp_path: Path) -> None:
    """One line, which the next replaces and the answer clears."""
    screen = Screen("generate", "Hi", state=tmp_path)
    shown = screen.wait_for("<'Hi'>")
    assert shown.index("\rlampo: loading fake\x1b[K") < shown.index("\rlampo: prompt 0 / 8\x1b[K")
    assert shown.endswith("\r\x1b[K<'Hi'>")
    assert "\n" not in shown
    assert screen.end() == 0
