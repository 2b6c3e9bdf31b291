# SPDX-License-Identifier: Apache-2.0
"""`lampo chat` over a model of canned answers, its messages from a pipe or typed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_llm import FakeLLM, use_llm

from lampo.cli.conversation import SETTINGS
from lampo.cli.main import main

Chat = Callable[..., int]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Runs `lampo chat` with the lines as stdin."""

    def run(llm: FakeLLM, *lines: str, arguments: tuple[str, ...] = ("-q",)) -> int:
        use_llm(monkeypatch, "chat", llm)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return main(["chat", *arguments])

    return run


def echo(prompt: str) -> str:
    return prompt.rpartition(">")[2].upper()


def test_history(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM(echo)
    assert chat(llm, "one", "", "two", "/clear", "three", "//slash") == 0
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
    lines = ("one", "/system Be calm.", "/clear", "two", "/system")
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
        "/clear ",
        "/set NAME VALUE: ",
        "Alt-Enter",
        "unknown command /nope",
    ):
        assert expected in said.err


def test_a_full_context(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is lost, the user is told, and /clear helps."""
    llm = FakeLLM("x" * 30, max_model_len=50)
    assert chat(llm, "a" * 20, "b" * 20, "/clear", "c") == 2
    said = capsys.readouterr()
    assert said.out.split() == ["x" * 24, "x" * 30]
    assert "the context is full; /clear starts a new conversation" in said.err
    assert "too many for the context of 50; /clear starts a new one" in said.err
    assert llm.prompts == ["<user>" + "a" * 20, "<user>c"]


def test_a_cut_answer_is_told(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(FakeLLM(), "Hi", arguments=("-q", "-n", "1")) == 0
    assert capsys.readouterr() == (
        "a\n",
        "lampo: stopped after 1 token (max_tokens); /set max_tokens allows more\n",
    )


def test_interrupted_answers(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C keeps what was said, and a message without an answer is forgotten."""

    def on_step(step: int) -> None:
        if len(llm.prompts) == 1 or (len(llm.prompts) == 2 and step == 2):
            raise KeyboardInterrupt

    llm = FakeLLM(on_step=on_step)
    assert chat(llm, "one", "two", "three") == 0
    assert llm.prompts == ["<user>one", "<user>two", "<user>two<assistant>an<user>three"]
    assert capsys.readouterr().out == "an\nanswer\n"


def test_no_chat_template(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(FakeLLM(chat_template=None), "Hi") == 2
    assert "no chat template; use `lampo generate --raw`" in capsys.readouterr().err


def test_settings(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    """Every sampling parameter that has an option, by its name in Python or on the command line."""
    llm = FakeLLM(echo)
    lines = (
        *("/set temperature 0.5", "/set top-k 3", "/set stop x 'y z'", "/set ignore_eos on"),
        *("/set logit_bias 3=-1.5 4=2", "/set stop_token_ids 1 2", "one"),
        *("/set temperature default", "/set top-k", "/set seed 7", "two"),
    )
    assert chat(llm, *lines, arguments=("-q", "-t", "0.25")) == 0
    first, second = llm.params
    assert (first.temperature, first.top_k, first.stop) == (0.5, 3, ("x", "y z"))
    assert (first.ignore_eos, first.logit_bias) == (True, {3: -1.5, 4: 2.0})
    assert first.stop_token_ids == (1, 2)
    assert (second.temperature, second.top_k, second.seed) == (0.8, 3, 7)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "lampo: temperature 0.5"
    assert said[6:8] == ["lampo: temperature 0.8 (default)", "lampo: top_k 3"]


def test_all_settings(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(FakeLLM(), "/set") == 0
    shown = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == list(SETTINGS)
    assert {"temperature", "top_p", "max_tokens", "bad_words"} <= {*shown}
    assert not {"n", "logprobs", "structured_outputs"} & {*shown}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set heat 1", "/set: there is no 'heat'; known are max_tokens, "),
        ("/set temperature warm", "temperature: expected a number, got 'warm'"),
        ("/set temperature 101", "temperature: expected a value in [0, 100], got 101"),
        ("/set seed 1.5", "seed: expected an integer, got '1.5'"),
        ("/set ignore_eos maybe", "ignore_eos: expected one of on, off, true, false, got 'maybe'"),
        ("/set logit_bias 3", "logit_bias: expected ID=VALUE, got '3'"),
        ("/set stop 'x", "No closing quotation"),
        ("/set n 2", "there is no 'n'"),
        ("/regenerate", "there is no answer yet"),
        ("/save", "/save: expected the name of a file"),
        ("/load", "/load: expected the name of a file"),
        ("/load no-such-file", "no-such-file: no such file"),
        ("/save /no/such/folder/x", "/no/such/folder/x: No such file or directory"),
    ],
)
def test_commands_that_fail(
    line: str, message: str, chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and the conversation goes on."""
    llm = FakeLLM(echo)
    assert chat(llm, line, "one") == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith("lampo: error: ")
    assert message in said.err
    assert said.out == "ONE\n"


def test_save_and_load(chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a talk.json"
    assert chat(FakeLLM(echo), "/system Be brief.", "one", f"/save {file}") == 0
    messages = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    llm = FakeLLM(echo)
    assert chat(llm, "zero", f"/load {file}", "two") == 0
    assert llm.prompts[1] == "<system>Be brief.<user>one<assistant>ONE<user>two"
    file.write_text('{"messages": [{"role": "robot", "content": "x"}]}')
    assert chat(llm, f"/load {file}") == 2
    assert "messages: expected a list of roles and texts" in capsys.readouterr().err


def test_regenerate(chat: Chat) -> None:
    """The last message is answered again, and the new answer takes the old one's place."""
    answers = iter(["A", "B", "C"])
    llm = FakeLLM(lambda prompt: next(answers))
    assert chat(llm, "one", "/regenerate", "two") == 0
    assert llm.prompts == ["<user>one", "<user>one", "<user>one<assistant>B<user>two"]


def test_tracebacks_of_failed_answers(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMPO_DEBUG", "1")
    assert chat(FakeLLM(), "/set seed x") == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "invalid literal for int()" in said  # the error behind it
    assert said.endswith("lampo: error: seed: expected an integer, got 'x'\n")
