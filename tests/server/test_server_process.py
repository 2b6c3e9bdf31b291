# SPDX-License-Identifier: Apache-2.0
"""`lampo serve` as users run it: a process of its own, a model, OpenAI's client, signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from checkpoints import make_checkpoint

from lampo import LLM, SamplingParams
from lampo.cli.main import main
from lampo.weights.default_model import cached_default_model

CHAT: Any = [{"role": "user", "content": "Hello"}]


class Process:
    """`lampo serve`, once it says where."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lampo", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            # A shell that runs the tests in the background has told its children to ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stderr is not None
        self.said = ""
        for line in self.process.stderr:
            self.said += line
            if match := re.search(r"is served on (http://\S+)", line):
                self.url = match[1]
                return
        raise AssertionError(self.said)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(rf"^lampo_{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Process]:
    process = Process(*arguments, **environment)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with a long context."""
    folder = tmp_path_factory.mktemp("serve") / "tiny-llama"
    make_checkpoint(folder, max_position_embeddings=32768)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with serving("-m", str(folder), "--max-num-seqs", "4", "--max-waiting", "8") as process:
        yield process


@pytest.fixture(scope="module")
def client(server: Process) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


def test_completions(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny-llama"]
    common: Any = {"model": "tiny-llama", "prompt": "Hello", "max_tokens": 12}
    once, again = (client.completions.create(**common, temperature=0) for _ in range(2))
    assert once.choices[0].text == again.choices[0].text
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(**common, temperature=0, stream=True)
    )
    assert text == once.choices[0].text
    seeded = [client.completions.create(**common, seed=3, n=3) for _ in range(2)]
    texts = [[c.text for c in done.choices] for done in seeded]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_echo_scores_the_prompt(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model="tiny-llama", prompt="Hello", max_tokens=0, echo=True, logprobs=2
    )
    found = done.choices[0].logprobs
    assert found is not None
    assert "".join(found.tokens) == "Hello"
    assert found.token_logprobs[0] is None
    assert all(value < 0 for value in found.token_logprobs[1:])


def test_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="tiny-llama", messages=CHAT, max_tokens=8, temperature=0, logprobs=True,
        top_logprobs=3, extra_body={"ignore_eos": True},
    )  # fmt: skip
    content = done.choices[0].logprobs.content
    assert len(content) == done.usage.completion_tokens == 8
    for token in content:  # greedy
        assert token.logprob == token.top_logprobs[0].logprob
        assert [t.logprob for t in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )
    with client.chat.completions.create(
        model="tiny-llama", messages=CHAT, max_tokens=8, temperature=0, stream=True,
        extra_body={"ignore_eos": True}, stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == done.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8


def test_structured_outputs(client: openai.OpenAI) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for seed in range(3):
        done = client.chat.completions.create(
            model="tiny-llama", messages=CHAT, response_format=form, seed=seed, max_tokens=300,
            extra_body={"logit_bias": {str(t): -100 for t in (222, 223, 224)}},
        )  # fmt: skip
        if done.choices[0].finish_reason == "stop":  # else whitespace went on and on
            found = json.loads(done.choices[0].message.content or "")
            assert found["a"] in ("x", "y")
            assert isinstance(found["b"], bool)
    done = client.completions.create(
        model="tiny-llama",
        prompt="Hi",
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert done.choices[0].text in ("yes", "no")
    bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny-llama", messages=CHAT, response_format=bad)
    assert caught.value.param == "response_format"


def test_prefixes_are_found_again(client: openai.OpenAI, server: Process) -> None:
    prompt = list(range(20, 220))
    common: Any = {"model": "tiny-llama", "prompt": prompt, "max_tokens": 1}
    client.completions.create(**common)
    done = client.completions.create(**common)
    assert done.usage.prompt_tokens_details.cached_tokens >= 128
    other = client.completions.create(**common, extra_body={"cache_salt": "another"})
    assert other.usage.prompt_tokens_details.cached_tokens == 0
    assert server.metric("prefix_cache_hit_tokens_total") >= 128


def test_leaving_frees_the_engine(client: openai.OpenAI, server: Process) -> None:
    long: Any = {"max_tokens": 30000, "ignore_eos": True, "prompt": "Hello"}
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**long, "stream": True}
    ) as reply:
        lines = reply.iter_lines()  # without a name it would be closed at once, and the reply too
        next(lines)
        assert server.metric("num_requests_running") == 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=long, timeout=0.2)
    deadline = time.monotonic() + 10
    while server.metric("num_requests_running") or server.metric("num_requests_waiting"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.metric("kv_cache_usage") == 0


def test_a_full_queue(client: openai.OpenAI, server: Process) -> None:
    """4 run, 8 wait, and more are told to come back."""
    url, statuses = f"{server.url}/v1/completions", []

    def call() -> None:
        body = {"prompt": "Hello", "max_tokens": 400, "ignore_eos": True}
        reply = httpx.post(url, json=body, timeout=60)
        statuses.append(reply.status_code)
        if reply.status_code == 429:
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error"]["code"] == "queue_full"

    threads = [threading.Thread(target=call) for _ in range(24)]
    for thread in threads:
        thread.start()
    assert httpx.get(f"{server.url}/health").status_code == 200
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("stream", [False, True])
def test_sigterm_drains(folder: Path, stream: bool) -> None:
    """The answer that is under way is finished, then the process ends well."""
    body = {"prompt": "Hello", "max_tokens": 1500, "ignore_eos": True, "stream": stream}
    replies: list[httpx.Response] = []
    with serving("-m", str(folder)) as server:
        call = threading.Thread(
            target=lambda: replies.append(
                httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
            )
        )
        call.start()
        while not server.metric("num_requests_running"):
            time.sleep(0.01)
        code, errors = server.stop()
        call.join()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert replies[0].status_code == 200
    assert "length" in replies[0].text
    if not stream:
        assert replies[0].json()["usage"]["completion_tokens"] == 1500


def test_interrupt(folder: Path) -> None:
    with serving("-m", str(folder)) as server:
        code, errors = server.stop(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in errors


def test_keys_come_from_the_environment(folder: Path) -> None:
    arguments = ("-m", str(folder), "--api-key", "k1", "--served-model-name", "mine")
    with serving(*arguments, LAMPO_API_KEY="k2") as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200
        for key in ("k1", "k2"):
            with server.client(key) as client:
                assert [m.id for m in client.models.list()] == ["mine"]
        with server.client("k3") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert "k1" not in server.said
        assert "k2" not in server.said


def test_loopback_names_only(server: Process) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    reply = httpx.get(f"{server.url}/v1/models", headers={"host": "evil.test"})
    assert reply.status_code == 403


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "{port}"], "Address already in use"),
        (["--host", "256.256.256.256"], "host: '256.256.256.256'"),
        (["--api-key", "two words"], "api_key: expected"),
        (["--max-n", "0"], "max_n: expected"),
        (["--drain-timeout", "nan"], "drain_timeout: expected"),
        (["-m", "no such model"], "no such model"),
        (["--max-waiting", "0", "-m", "{folder}"], "max_waiting: expected"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    server: Process,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = server.url.rpartition(":")[2]
    given = [a.replace("{port}", port).replace("{folder}", str(folder)) for a in arguments]
    if "--port" not in given:
        given += ["--port", "0"]
    assert main(["serve", "-q", *given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_empty_key_is_no_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMPO_API_KEY", "")
    assert main(["serve", "--port", "0"]) == 2
    assert "api_key: expected" in capsys.readouterr().err


def test_without_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve"]) == 2
    assert "pip install 'lampo[serve]'" in capsys.readouterr().err


@pytest.mark.model
def test_the_default_model() -> None:
    if cached_default_model() is None:
        pytest.skip("the default model is not cached; `lampo pull` fetches it")
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    with LLM() as llm:  # what the answer is, is the instruction set's to say
        params = SamplingParams(temperature=0, max_tokens=20)
        expected = llm.chat(messages, params)[0].outputs[0]
    with serving() as server, server.client() as client:
        done = client.chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=messages,
            temperature=0,
            max_completion_tokens=20,
        )
        assert done.choices[0].message.content == expected.text
        assert done.choices[0].finish_reason == expected.finish_reason
        assert server.stop()[0] == 0
