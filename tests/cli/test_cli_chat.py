# SPDX-License-Identifier: Apache-2.0
"""`lampo chat` over a model of canned answers, its messages from a pipe or typed."""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Callable

import pytest
from fake_llm import FakeLLM

from lampo.cli.main import main

Chat = Callable[..., int]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Runs `lampo chat` with the lines as stdin."""

    def run(llm: FakeLLM, *lines: str, arguments: tuple[str, ...] = ("-q",)) -> int:
        monkeypatch.setattr("lampo.cli.chat.open_llm", lambda options, quiet: llm)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return main(["chat", *arguments])

    return run


def echo(prompt: str) -> str:
    return prompt.rpartition(">")[2].upper()


def test_history(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM(echo)
    assert chat(llm, "one", "", "two", "/reset", "three", "//slash") == 0
    assert capsys.readouterr() == ("ONE\nTWO\nTHREE\n/SLASH\n", "lampo: a new conversation\n")
    assert llm.prompts == [
        "<user>one",
        "<user>one<assistant>ONE<user>two",
        "<user>three",
        "<user>three<assistant>THREE<user>/slash",
    ]
    assert llm.closed


def test_system_message(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM(echo)
    lines = ("one", "/system Be calm.", "/reset", "two", "/system")
    assert chat(llm, *lines, arguments=("--system", "Be brief.", "-q")) == 0
    assert llm.prompts == ["<system>Be brief.<user>one", "<system>Be calm.<user>two"]
    assert capsys.readouterr().err.count("system message: Be calm.") == 2


def test_commands(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ("/stats", "Hi", "/stats", "/help", "/nope", "/exit", "never read")
    assert chat(FakeLLM(), *lines, arguments=()) == 0
    said = capsys.readouterr()
    assert said.out == "answer\n"
    for expected in (
        "fake.gguf, loaded in 0.25 s, temperature 0.8, top-k 40, top-p 0.95, min-p 0.05; /help",
        "no answer yet",
        "8 prompt tokens, first token after 50 ms, 6 output tokens",
        "2 messages, 14 of 200 tokens of context (7 %)",
        "/reset ",
        "unknown command /nope",
    ):
        assert expected in said.err


def test_a_full_context(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is lost, the user is told, and /reset helps."""
    llm = FakeLLM("x" * 30, max_model_len=50)
    assert chat(llm, "a" * 20, "b" * 20, "/reset", "c") == 2
    said = capsys.readouterr()
    assert said.out.split() == ["x" * 24, "x" * 30]
    assert "the context is full; /reset starts a new conversation" in said.err
    assert "too many for the context of 50; /reset starts a new one" in said.err
    assert llm.prompts == ["<user>" + "a" * 20, "<user>c"]


def test_a_cut_answer_is_told(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(FakeLLM(), "Hi", arguments=("-q", "-n", "1")) == 0
    assert capsys.readouterr() == ("a\n", "lampo: stopped after 1 token (--max-tokens)\n")


def test_interrupted_answers(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C keeps what was said, and a message without an answer is forgotten."""

    def on_step(step: int) -> None:
        if len(llm.prompts) == 1 or (len(llm.prompts) == 2 and step == 2):
            raise KeyboardInterrupt

    llm = FakeLLM(on_step=on_step)
    assert chat(llm, "one", "two", "three") == 0
    assert llm.prompts == ["<user>one", "<user>two", "<user>two<assistant>an<user>three"]
    assert capsys.readouterr().out == "an\nanswer\n"


def test_at_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C at the prompt leaves with 130, Ctrl-D with 0; the prompt is not piped."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("lampo.cli.chat.open_llm", lambda options, quiet: FakeLLM())
    monkeypatch.setattr(sys, "stdin", Terminal())
    for end, code in ((KeyboardInterrupt, 130), (EOFError, 0)):
        typed = iter(["Hi"])

        def read(prompt: str, typed: object = typed, end: type[BaseException] = end) -> str:
            try:
                return next(typed)  # type: ignore[call-overload, no-any-return]
            except StopIteration:
                raise end from None

        monkeypatch.setattr(builtins, "input", read)
        assert main(["chat", "-q"]) == code
        assert capsys.readouterr() == ("answer\n", "> > \n")


def test_no_chat_template(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(FakeLLM(chat_template=None), "Hi") == 2
    assert "no chat template; use `lampo generate --raw`" in capsys.readouterr().err
