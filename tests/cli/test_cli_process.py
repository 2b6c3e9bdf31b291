# SPDX-License-Identifier: Apache-2.0
"""`lampo` with real models: bad files in this process, the default model in its own."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, make_gguf

from lampo import LLM, SamplingParams
from lampo.cli.main import main
from lampo.weights.default_model import cached_default_model

LAMPO = [sys.executable, "-m", "lampo"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of 256 tokens of context; beside it, files that are none."""
    folder = tmp_path_factory.mktemp("cli")
    make_checkpoint(folder / "tiny")
    make_gguf(folder / "cut.gguf")
    with (folder / "cut.gguf").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) // 2)
    (folder / "text.gguf").write_text("This is no model.")
    (folder / "empty").mkdir()
    return folder / "tiny"


@pytest.fixture
def default_model() -> None:
    if cached_default_model() is None:
        pytest.skip("the default model is not cached; `lampo pull` fetches it")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "{folder}/none.gguf"], "error: model: '"),
        (["-m", "no-such-model"], "error: model: 'no-such-model' is no file or folder here"),
        (["-m", "{folder}/cut.gguf"], "cut.gguf"),
        (["-m", "{folder}/text.gguf"], "text.gguf"),
        (["-m", "{folder}/empty"], "empty"),
        (["--dtype", "int3"], "error: dtype: expected one of auto, "),
        (["--kv-cache-dtype", "int3"], "error: kv_cache_dtype: expected one of auto, "),
        (["--max-model-len", "100000"], "error: max_model_len: expected a value in [1, 256]"),
        (["--max-model-len", "8"], "tokens, but the context of 8 leaves room for 7"),
        (["--stop-token-id", "320"], "token id 320 is not in the vocabulary of 320"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line naming what is wrong, nothing on stdout, and 2."""
    given = [argument.replace("{folder}", str(tiny.parent)) for argument in arguments]
    assert main(["generate", "A long enough prompt", "-q", "-m", str(tiny), *given]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lampo: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_tiny_model_answers(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["generate", "Hello", "-m", str(tiny), "-n", "4", "-t", "0", "--ignore-eos"]
    assert main([*common, "--json", "--logprobs", "3", "--top-p", "0.5"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["token_ids"]) == len(result["logprobs"]) == 4
    assert result["finish_reason"] == "length"
    assert all(entry["num_kept"] == 1 for entry in result["logprobs"])
    assert main([*common, "--raw", "--n", "2"]) == 0
    said = capsys.readouterr()
    assert "--- 2 of 2" in said.out
    assert "raw prompt" in said.err
    assert main([*common, "-n", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["text"], result["token_ids"], result["finish_reason"]) == ("", [], "length")


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAMPO, *arguments], input=stdin, capture_output=True, text=True)


@pytest.mark.model
@pytest.mark.usefixtures("default_model")
def test_json_from_stdin() -> None:
    prompt = "The capital of France is"
    done = run("generate", "--raw", "--json", "-t", "0", "-n", "8", stdin=f"{prompt}\n")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["prompt"] == prompt
    with LLM() as llm:  # what the answer is, is the instruction set's to say
        params = SamplingParams(temperature=0, max_tokens=8)
        assert result["text"] == llm.generate(prompt, params)[0].outputs[0].text
    assert result["metrics"]["cache_bytes"] > 0


@pytest.mark.model
@pytest.mark.usefixtures("default_model")
def test_chat_through_a_pipe() -> None:
    lines = "My name is Ada.\nWhat is my name?\n/stats\n"
    done = run("chat", "-q", "-t", "0", "-n", "40", stdin=lines)
    assert done.returncode == 0
    assert "4 messages" in done.stderr
    messages = []
    with LLM() as llm:  # the second answer is one to the whole conversation
        params = SamplingParams(temperature=0, max_tokens=40)
        for line in lines.splitlines()[:2]:
            messages.append({"role": "user", "content": line})
            text = llm.chat(messages, params)[0].outputs[0].text
            assert text.strip() in done.stdout
            messages.append({"role": "assistant", "content": text})


LONG = ["generate", "Count to a thousand.", "--ignore-eos", "-n", "4000", "-t", "0"]


@pytest.mark.model
@pytest.mark.usefixtures("default_model")
def test_interrupt() -> None:
    """Ctrl-C at a terminal reaches the whole process group."""
    process = subprocess.Popen(
        [*LAMPO, *LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # else read(1) would swallow more, which communicate() does not see
        start_new_session=True,
        # A shell that runs the tests in the background has told its children to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    os.killpg(process.pid, signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert first
    assert rest.endswith(b"\n")
    assert b"Traceback" not in errors
    assert errors.endswith(b"interrupted\n")


# A module that takes its time, and swallows what interrupts it.
SLOW_MODULE = """
import os, time
os.write(1, b"importing")
try:
    time.sleep(60)
except BaseException:
    pass
os._exit(99)
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("typer", ["--help"]), ("torch", ["generate", "Hi", "-q"]), ("uvicorn", ["serve", "-q"])],
)
def test_interrupt_while_importing(
    module: str, arguments: list[str], tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(SLOW_MODULE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    if arguments[0] in ("generate", "serve"):
        arguments = [*arguments, "-m", str(tiny)]
    process = subprocess.Popen(
        [*LAMPO, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.read(9) == b"importing"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 130


def test_interrupt_before_main() -> None:
    """In the first milliseconds, while even the command line's own modules are imported."""
    program = """if True:
        import os, signal, sys
        import lampo.__main__ as m
        class Interrupting:
            def find_spec(self, name, path=None, target=None):
                if name == "lampo.cli.main":
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Interrupting())
        m.program()
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize(
    ("handler", "happens", "code"),
    [
        (signal.SIG_DFL, "raise KeyboardInterrupt", 130),  # while the first one was answered
        (signal.SIG_DFL, "signal.raise_signal(signal.SIGINT)", 130),
        (signal.SIG_IGN, "signal.raise_signal(signal.SIGINT)", 7),  # as of a shell's background job
    ],
)
def test_interrupt_outside_of_main(handler: signal.Handlers, happens: str, code: int) -> None:
    program = f"""if True:
        import signal, lampo.cli.main as m
        def main():
            {happens}
            return 7
        m.main = main
        m.program()
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@pytest.mark.model
@pytest.mark.usefixtures("default_model")
def test_closed_pipe() -> None:
    process = subprocess.Popen([*LAMPO, *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert b"Error" not in errors
    assert b"Traceback" not in errors
    process.stderr.close()


@pytest.mark.parametrize(
    "arguments", [["doctor"], ["doctor", "--json"], ["--help"], ["generate", "--help"], ["list"]]
)
def test_closed_pipe_of_other_commands(arguments: list[str], tmp_path: Path) -> None:
    """As of `lampo doctor | true`."""
    with (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").open("wb") as file:
        file.truncate(98_362_432)
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "LAMPO_CACHE": str(tmp_path)}
    done = subprocess.run(
        [*LAMPO, *arguments], stdout=write, stderr=subprocess.PIPE, env=environment
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.1, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_interrupt_while_loading(delay: float, tiny: Path) -> None:
    process = subprocess.Popen(
        [*LAMPO, "generate", "Hi", "-m", str(tiny), "-n", "200", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGINT)  # the last: Python was still starting
    if process.returncode == 130:
        assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("default_model")
def test_chat_at_a_terminal() -> None:
    """Ctrl-C stops an answer and keeps the conversation; two at the prompt leave with 130."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(LAMPO[0], [*LAMPO, "chat", "-t", "0"])
    screen = ""

    def wait_for(text: str) -> None:
        nonlocal screen
        deadline = time.monotonic() + 60
        while text not in screen:
            assert time.monotonic() < deadline, screen
            if select.select([terminal], [], [], 1.0)[0]:
                screen += os.read(terminal, 4096).decode("utf-8", "replace")
        screen = screen.partition(text)[2]

    wait_for("> ")
    os.write(terminal, b"Write a long story about the sea.\r")
    wait_for("sea.")
    wait_for(" the ")
    os.write(terminal, b"\x03")
    wait_for("> ")
    os.write(terminal, b"/stats\r")
    wait_for("interrupted")
    wait_for("> ")
    os.write(terminal, b"\x03")
    wait_for("> ")
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 130
