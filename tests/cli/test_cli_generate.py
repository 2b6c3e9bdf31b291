# SPDX-License-Identifier: Apache-2.0
"""`lampo generate` over a model of canned answers: stdout, stderr and exit codes."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from fake_llm import FakeLLM, use_llm

from lampo.cli.main import main


class Piped(io.TextIOWrapper):
    """A stdin that is no terminal."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


class Terminal(io.StringIO):
    """A stdin or stdout that is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    return use(monkeypatch, FakeLLM())


def use(monkeypatch: pytest.MonkeyPatch, llm: FakeLLM) -> FakeLLM:
    use_llm(monkeypatch, "generate", llm)
    return llm


def interrupt_at(step: int) -> FakeLLM:
    def on_step(now: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    return FakeLLM("a long answer", on_step=on_step)


def test_text_on_stdout_statistics_on_stderr(
    llm: FakeLLM, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "Hello"]) == 0
    said = capsys.readouterr()
    assert said.out == "answer\n"
    assert said.err.splitlines() == [
        "lampo: fake.gguf, loaded in 0.25 s, chat template, temperature 0.8, top-k 40, top-p 0.95, "
        "min-p 0.05",
        "lampo: 11 prompt tokens, first token after 50 ms, 6 output tokens, 100.0 tokens/s, "
        "5.0 MB of KV cache, the answer ended",
    ]
    assert llm.prompts == ["<user>Hello"]
    assert llm.closed


def test_quiet(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-q", "Hello"]) == 0
    assert capsys.readouterr() == ("answer\n", "")


@pytest.mark.parametrize("template", ["chatml", None])
def test_raw_prompts(
    template: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--raw, and every model without a chat template, continues the prompt as it is."""
    llm = use(monkeypatch, FakeLLM(chat_template=template))
    assert main(["generate", "Hello", *(["--raw"] if template else [])]) == 0
    assert llm.prompts == ["Hello"]
    assert "raw prompt" in capsys.readouterr().err


def test_system_message(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hi", "--system", "Be brief."]) == 0
    assert llm.prompts == ["<system>Be brief.<user>Hi"]
    assert main(["generate", "Hi", "--system", "Be brief.", "--raw"]) == 2
    assert "error: system: a raw prompt has no messages" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_prompt_from_stdin(
    arguments: list[str], llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Piped("two\nlines, naïve\n\n".encode()))
    assert main(["generate", "--raw", *arguments]) == 0
    assert llm.prompts == ["two\nlines, naïve\n"]


def test_prompt_from_a_file(
    llm: FakeLLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("two\r\nlines, naïve\r\n".encode())
    assert main(["generate", "--raw", "-f", str(file)]) == 0
    monkeypatch.setattr(sys, "stdin", Piped(b"piped\n"))
    assert main(["generate", "--raw", "--file", "-"]) == 0
    assert llm.prompts == ["two\r\nlines, naïve", "piped"]
    file.write_bytes(b"abc\xff")
    for arguments, message in (
        (["-f", str(file)], f"prompt: {file} is not UTF-8, at byte 3"),
        (["-f", str(tmp_path / "none")], f"{tmp_path / 'none'}: No such file or directory"),
        (["-f", str(tmp_path)], f"{tmp_path}: Is a directory"),
        (["-f", str(file), "Hi"], "prompt: give it as an argument or as --file, not both"),
    ):
        capsys.readouterr()
        assert main(["generate", *arguments]) == 2
        assert capsys.readouterr().err == f"lampo: error: {message}\n"


def test_prompts_that_are_none(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", ""]) == 2
    assert capsys.readouterr().err == "lampo: error: prompt: is empty\n"
    monkeypatch.setattr(sys, "stdin", Piped(b"\n"))
    assert main(["generate"]) == 2
    assert capsys.readouterr().err == "lampo: error: prompt: is empty\n"
    monkeypatch.setattr(sys, "stdin", Piped(b"abc\xff"))
    assert main(["generate"]) == 2
    assert capsys.readouterr().err == "lampo: error: prompt: stdin is not UTF-8, at byte 3\n"
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["generate"]) == 2
    assert "error: prompt: missing; give it" in capsys.readouterr().err


def test_every_sampling_option_arrives(llm: FakeLLM) -> None:
    options = """
        --max-tokens 5 --min-tokens 1 --temperature 0.5 --top-p 0.9 --top-k 3 --min-p 0.1 --seed -7
        --repetition-penalty 1.1 --presence-penalty 0.2 --frequency-penalty -0.3 --stop x --stop yz
        --stop-token-id 4 --stop-token-id 5 --ignore-eos --logit-bias 3=-1.5 --logprobs 2
        --prompt-logprobs 1 --show-special-tokens
    """
    assert main(["generate", "Hello", *options.split()]) == 0
    (p,) = llm.params
    assert (p.max_tokens, p.min_tokens, p.temperature, p.top_p, p.top_k) == (5, 1, 0.5, 0.9, 3)
    assert (p.min_p, p.seed, p.repetition_penalty, p.presence_penalty) == (0.1, -7, 1.1, 0.2)
    assert (p.frequency_penalty, p.stop, p.stop_token_ids) == (-0.3, ("x", "yz"), (4, 5))
    assert (p.ignore_eos, p.logit_bias, p.prompt_logprobs) == (True, {3: -1.5}, 1)
    assert not p.skip_special_tokens


def test_threads(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPO_NUM_THREADS", "1")
    assert main(["generate", "--threads", "2", "Hello"]) == 0
    assert os.environ["LAMPO_NUM_THREADS"] == "2"


def test_json(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "--json", "--logprobs", "2", "--top-p", "0.75", "-t", "1", "Hello"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    result = json.loads(said.out)
    assert result["prompt"] == "Hello"
    assert result["chat_template"] is True
    assert result["text"] == "answer"
    assert result["token_ids"] == [ord(c) for c in "answer"]
    assert result["finish_reason"] == "stop"
    assert result["metrics"]["num_output_tokens"] == 6
    assert result["metrics"]["tokens_per_second"] == pytest.approx(100.0)
    assert result["metrics"]["load_time"] == 0.25
    first = result["logprobs"][0]
    assert (first["token"], first["rank"], first["num_kept"]) == ("a", 1, 2)
    assert [c["token"] for c in first["candidates"]] == ["a", "b"]
    assert [c["probability"] for c in first["candidates"]] == pytest.approx([0.5, 0.3])


def test_table_shows_candidates_and_nucleus(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--logprobs", "3", "--prompt-logprobs", "1", "--top-p", "0.75", "-n", "2"]
    assert main(["generate", "[/b] x\xe9", *arguments]) == 0
    said = capsys.readouterr()
    assert said.out == "an\n"
    table = said.err
    assert "'a'   │      50.0 % │    1 │    2 │ 'a' 50.0 %  'b' 30.0 %  | 'c' 10.0 %" in table
    assert "'['" in table  # prompts are no markup
    assert "b'\\xe9'" in table  # a part of a character
    assert "with temperature 0.8, top-k 40, top-p 0.75, min-p 0.05" in " ".join(table.split())


def test_several_completions(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hi", "--n", "2", "-q"]) == 0
    assert capsys.readouterr().out == "--- 1 of 2\nanswer0\n--- 2 of 2\nanswer1\n"
    assert main(["generate", "Hi", "--n", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [output["text"] for output in result["outputs"]] == ["answer0", "answer1"]


def test_no_tokens(llm: FakeLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "Hi", "-n", "0"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "0 output tokens" in said.err


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    use(monkeypatch, interrupt_at(3))
    assert main(["generate", "Hi"]) == 130
    said = capsys.readouterr()
    assert said.out == "a l\n"
    assert "8 prompt tokens, first token after" in said.err
    assert "3 output tokens" in said.err
    assert said.err.endswith("interrupted\n")
    assert main(["generate", "--json", "Hi"]) == 130
    result = json.loads(capsys.readouterr().out)
    assert (result["text"], result["finish_reason"]) == ("a l", "interrupted")


def test_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model cannot drive the terminal; a pipe gets what it said."""
    nasty = "[bold]a\x1b[31m\x9b5m\r\x07b\tc\nd\x7f"
    use(monkeypatch, FakeLLM(nasty))
    assert main(["generate", "-q", "Hi"]) == 0
    assert capsys.readouterr().out == nasty + "\n"
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["generate", "-q", "Hi"]) == 0
    assert screen.getvalue() == "[bold]a[31m5mb\tc\nd\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("model: 'x'\nis bad"), 2, "error: model: 'x' is bad"),
        (TypeError("seed: no"), 2, "error: seed: no"),
        (MemoryError(), 2, "error: out of memory"),
        (PermissionError(13, "Permission denied", "a.gguf"), 2, "error: a.gguf: Permission denied"),
        (
            RuntimeError("odd [red]\x1b[2J"),
            1,
            "error: RuntimeError: odd [red][2J (run with LAMPO_DEBUG=1 for the traceback)",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: object, quiet: bool) -> None:
        raise error

    monkeypatch.setattr("lampo.cli.generate.open_files", fail)
    monkeypatch.delenv("LAMPO_DEBUG", raising=False)
    assert main(["generate", "Hi"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (f"lampo: {line}\n" if line else "")
    if isinstance(error, Exception):
        monkeypatch.setenv("LAMPO_DEBUG", "1")
        assert main(["generate", "Hi"]) == code
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "-1"], "temperature: expected a value in [0, 100], got -1.0"),
        (["-t", "nan"], "temperature: expected a value in [0, 100], got nan"),
        (["--top-p", "0"], "top_p: expected a value in (0, 1], got 0.0"),
        (["--stop", ""], "stop[0]: expected 1 to 1024 characters, got 0"),
        (["-n", "-1"], "max_tokens: expected a value in [0, 2147483647], got -1"),
        (["--logprobs", "1000"], "logprobs: expected a value in [-1, 256], got 1000"),
        (["--logit-bias", "3"], "logit_bias: expected ID=VALUE, got '3'"),
        (["-t", "warm"], "--temperature"),
        (["--threads", "0"], "--threads"),
        (["--colour"], "--colour"),
        (["--logit-bias", "7" * 70_000], "characters) ... "),
        (["--" + "x" * 70_000], "characters) ... "),
        (["-m", "x/" * 40_000], "is no file or folder here"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is loaded."""
    assert main(["generate", "Hi", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lampo: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert len(said.err) < 1200
