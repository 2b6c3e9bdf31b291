# SPDX-License-Identifier: Apache-2.0
"""The server's endpoints over an engine of known tokens: shapes, streams, errors, keys."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_async_llm import FakeAsyncLLM
from http_server import Running, error_of, running, sse
from tiny_tokenizers import make_backend, save

from lampo.async_llm import Health
from lampo.server.app import create_app
from lampo.server.log import ShortLines
from lampo.server.settings import Settings
from lampo.text.structured_outputs import StructuredOutputs
from lampo.text.tokenizer import Tokenizer

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
PROMPT = {"prompt": "Hello", "max_tokens": 4}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(FakeAsyncLLM(tmp_path_factory.mktemp("tiny"))) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models(client: openai.OpenAI, server: Running) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/other")
    error_of(server.post("/v1/completions", {**PROMPT, "model": "other"}), 404, "model_not_found")


def test_completion(client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="Hello", max_tokens=7, n=2)
    assert [c.text for c in done.choices] == ["HelloHe", "elloHel"]
    assert [c.index for c in done.choices] == [0, 1]
    assert {c.finish_reason for c in done.choices} == {"length"}
    assert done.object == "text_completion"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (5, 14)
    assert done.usage.total_tokens == 19
    assert done.usage.prompt_tokens_details.cached_tokens == 2
    assert done._request_id == done.id
    assert len(client.completions.create(model="tiny", prompt="Hi").choices[0].text) == 16


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["Hi", "ab"], ["HiHi", "abababab"]),
        ([20, 21], ["2323"]),
        ([[20, 21], [22]], ["2323", "4444"]),
    ],
)
def test_prompts(client: openai.OpenAI, prompt: Any, texts: list[str]) -> None:
    done = client.completions.create(model="tiny", prompt=prompt, max_tokens=4)
    assert [c.text for c in done.choices] == texts
    stream = client.completions.create(model="tiny", prompt=prompt, max_tokens=4, stream=True)
    found = [""] * len(texts)
    for chunk in stream:
        found[chunk.choices[0].index] += chunk.choices[0].text
    assert found == texts


def test_completion_logprobs(server: Running, client: openai.OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt="Hello", max_tokens=3, logprobs=2)
    found = done.choices[0].logprobs
    assert found is not None
    assert found.tokens == ["H", "e", "l"]
    assert found.text_offset == [0, 1, 2]
    assert found.token_logprobs == [-1.0] * 3
    assert found.top_logprobs[0] == {"!": -0.5, "H": -1.0}
    body = {"prompt": "Hello", "max_tokens": 3, "logprobs": 2, "stream": True}
    chunks = sse(server.post("/v1/completions", body).text)
    parts = [c["choices"][0]["logprobs"] for c in chunks]
    assert [p["tokens"] for p in parts] == [["H"], ["e"], ["l"]]
    assert [p["text_offset"] for p in parts] == [[0], [1], [2]]


def test_echo(server: Running) -> None:
    body = {"prompt": "Hello", "max_tokens": 0, "echo": True, "logprobs": 1}
    (choice,) = server.post("/v1/completions", body).json()["choices"]
    assert choice["text"] == "Hello"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == list("Hello")
    assert choice["logprobs"]["token_logprobs"][:2] == [None, -1.0]
    assert choice["logprobs"]["top_logprobs"][0] is None
    body = {"prompt": [42, 71], "max_tokens": 2, "echo": True, "n": 2}
    done = server.post("/v1/completions", body).json()
    assert [c["text"] for c in done["choices"]] == ["HeHe", "HeeH"]
    chunks = sse(server.post("/v1/completions", {**body, "stream": True}).text)
    texts = ["".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == i)
             for i in (0, 1)]  # fmt: skip
    assert texts == ["HeHe", "HeeH"]


def test_infinite_logprobs_are_json(server: Running) -> None:
    body = {"prompt": "Hello", "max_tokens": 1, "logprobs": 20}
    (choice,) = server.post("/v1/completions", body).json()["choices"]
    assert min(choice["logprobs"]["top_logprobs"][0].values()) == -9999.0


def test_stream_usage(server: Running) -> None:
    body = {**PROMPT, "stream": True, "stream_options": {"include_usage": True}}
    response = server.post("/v1/completions", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = sse(response.text)
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None, None, None, "length"]
    chunks = sse(server.post("/v1/completions", {**PROMPT, "stream": True}).text)
    assert all("usage" not in chunk for chunk in chunks)
    always = {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    for path, prompt in (("/v1/completions", PROMPT), ("/v1/chat/completions", CHAT)):
        *chunks, last = sse(server.post(path, {**prompt, **always, "max_tokens": 4}).text)
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts) and {1, 2, 3, 4} == set(counts)
        assert last["usage"] == chunks[-1]["usage"]


def test_chat(client: openai.OpenAI) -> None:
    messages: Any = CHAT["messages"]
    done = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=5, n=2, logprobs=True, top_logprobs=2
    )
    assert done.object == "chat.completion"
    first, second = done.choices
    assert first.message.role == "assistant"
    assert (first.message.content, second.message.content) == ("user", "user\n")
    tokens = first.logprobs.content
    assert [t.token for t in tokens] == ["<|im_start|>", *"user"]
    assert tokens[1].bytes == [ord("u")]
    assert [t.logprob for t in tokens[1].top_logprobs] == [-0.5, -1.0]
    assert done.usage.prompt_tokens == 24
    only = client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=2, logprobs=True
    )
    assert only.choices[0].logprobs.content[0].top_logprobs == []
    assert client.chat.completions.create(
        model="tiny", messages=messages
    ).usage.completion_tokens == 256 - 24  # fmt: skip


def test_tools_are_the_templates_business(tmp_path: Path) -> None:
    engine = FakeAsyncLLM(tmp_path / "plain")
    engine.llm.tokenizer = Tokenizer.from_directory(
        save(make_backend("chatml"), "chatml", tmp_path / "chatml")
    )
    engine.llm.max_model_len, engine.llm.config.vocab_size = 2000, 1000
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    with running(engine) as server:

        def text(body: Any) -> str:
            tokens = server.post("/tokenize", {**CHAT, **body}).json()["tokens"]
            return str(engine.llm.tokenizer.decode(tokens, skip_special_tokens=False))

        def count(body: Any) -> int:
            reply = server.post("/v1/chat/completions", {**CHAT, "max_tokens": 0, **body})
            return int(reply.json()["usage"]["prompt_tokens"])

        assert "weather" in text({"tools": [tool]})
        assert "weather" not in text({})
        assert count({"tools": [tool]}) == count({"tools": [tool], "tool_choice": "auto"})
        assert count({"tools": [tool]}) > count({})
        assert count({"tools": [tool], "tool_choice": "none"}) == count({})
        assert text({"chat_template_kwargs": {"enable_thinking": False}}).endswith("</think>\n\n")
        assert not text({"add_generation_prompt": False}).endswith("assistant\n")


def test_chat_stream(server: Running, client: openai.OpenAI) -> None:
    body = {**CHAT, "max_tokens": 5, "stream": True, "n": 2}
    chunks = sse(server.post("/v1/chat/completions", body).text)
    for index, text in ((0, "user"), (1, "user\n")):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in choice["delta"] for choice in own[1:])
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"]
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    messages: Any = CHAT["messages"]
    with client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=3, stream=True,
        stream_options={"include_usage": True}, logprobs=True,
    ) as stream:  # fmt: skip
        seen = list(stream)
    assert seen[-1].usage.completion_tokens == 3
    assert sum(len(c.choices[0].logprobs.content) for c in seen[1:-1]) == 3


def test_parameters_reach_the_engine(server: Running) -> None:
    sampling = {
        "n": 2, "max_tokens": 3, "min_tokens": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 7,
        "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.2, "seed": 4,
        "frequency_penalty": -0.3, "ignore_eos": True, "stop_token_ids": [5],
        "skip_special_tokens": False, "include_stop_str_in_output": True,
        "logprobs_mode": "processed", "allowed_token_ids": [5, 6],
    }  # fmt: skip
    body = {**sampling, "stop": "x", "logit_bias": {"9": -3}, "priority": -2, "cache_salt": "a",
            "user": "u", "metadata": {"k": [1]}, "store": True}  # fmt: skip
    for path, prompt in (("/v1/completions", {"prompt": "Hi"}), ("/v1/chat/completions", CHAT)):
        assert server.post(path, {**body, **prompt}).status_code == 200
        added = server.engine.added[-1]
        found = {name: getattr(added["params"], name) for name in sampling}
        assert found == {**sampling, "stop_token_ids": (5,), "allowed_token_ids": (5, 6)}
        assert added["params"].stop == ("x",)
        assert added["params"].logit_bias == {9: -3.0}
        assert (added["priority"], added["cache_salt"]) == (-2, "a")


def test_structures_reach_the_engine(server: Running) -> None:
    def last(path: str, body: Any) -> StructuredOutputs:
        reply = server.post(path, body)
        assert reply.status_code == 200, reply.text
        found: StructuredOutputs = server.engine.added[-1]["params"].structured_outputs
        return found

    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    found = last("/v1/chat/completions", {**CHAT, "response_format": wanted})
    assert found.json == json.dumps(schema)  # properties in their order
    found = last("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}})
    assert found == StructuredOutputs(json_object=True)
    assert last("/v1/chat/completions", {**CHAT, "response_format": {"type": "text"}}) is None
    for structure in ({"regex": "[a-z]+"}, {"choice": ["a", "b"]}, {"json": schema},
                      {"json_object": True, "disable_any_whitespace": True}):  # fmt: skip
        found = last("/v1/completions", {**PROMPT, "structured_outputs": structure})
        assert found == StructuredOutputs(**structure)  # type: ignore[arg-type]


def test_nulls_are_defaults(server: Running) -> None:
    names = [
        "n",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "logit_bias",
        "top_k",
    ]
    body = {**PROMPT, **dict.fromkeys(names)}
    assert server.post("/v1/completions", body).status_code == 200


def test_tokenize(server: Running) -> None:
    found = server.post("/tokenize", {"prompt": "Hello", "return_token_strs": True}).json()
    assert found == {
        "count": 5,
        "max_model_len": 256,
        "tokens": [42, 71, 78, 78, 81],
        "token_strs": list("Hello"),
    }
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "Hello"}
    chat = server.post("/tokenize", CHAT).json()["tokens"]
    text = server.post("/detokenize", {"tokens": chat}).json()["prompt"]
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    text = {"prompt": "<|im_end|>"}  # a user's special token is ordinary text
    assert server.post("/tokenize", text).json()["count"] == len("<|im_end|>")
    assert server.post("/tokenize", {"prompt": ""}).json()["tokens"] == []
    long = server.post("/tokenize", {"prompt": "ab" * 100_000}).json()
    assert long["count"] == 100_000


def test_routing(server: Running) -> None:
    error_of(server.client.get("/nope"), 404, "route_not_found")
    error_of(server.post("/v1/nope", {}), 404, "route_not_found")
    error_of(server.client.get("/v1/completions"), 405, "method_not_allowed")
    error_of(server.client.delete("/v1/models"), 405, "method_not_allowed")
    for path in ("/docs", "/redoc"):
        assert server.client.get(path).status_code == 404
    assert "/v1/chat/completions" in server.client.get("/openapi.json").json()["paths"]


def test_head(server: Running) -> None:
    for path in ("/health", "/v1/models", "/metrics"):
        got, head = server.client.get(path), server.client.head(path)
        assert head.status_code == 200
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
    assert server.client.head("/nope").status_code == 404
    assert server.client.head("/v1/completions").status_code == 405
    assert server.client.get("/health").json() == {"status": "ok"}  # the connection goes on


def test_trailing_slashes(server: Running) -> None:
    for path in ("/health/", "/v1/models/", "/v1/models/tiny/"):
        assert server.client.get(path).status_code == 200
    assert server.post("/v1/completions/", PROMPT).status_code == 200
    assert server.post("/v1/chat/completions/", {**CHAT, "max_tokens": 1}).status_code == 200
    error_of(server.client.get("/nope/"), 404, "route_not_found")


def test_health(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    for state, status in (
        (Health(alive=True, busy=False, heartbeat_age=1e6, failing=False), 200),
        (Health(alive=True, busy=True, heartbeat_age=1e6, failing=False), 503),
        (Health(alive=False, busy=False, heartbeat_age=0.0, failing=False), 503),
        (Health(alive=True, busy=True, heartbeat_age=0.0, failing=True), 503),
    ):
        server.engine.state = state
        assert server.client.get("/health").status_code == status
    server.engine.state = Health(alive=True, busy=False, heartbeat_age=0.0, failing=False)


def test_metrics(server: Running) -> None:
    def read() -> dict[str, float]:
        text = server.client.get("/metrics").text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name.replace('model_name="tiny"', "").strip(): float(v) for name, _, v in lines}

    before = read()
    assert server.post("/v1/completions", {"prompt": ["Hi", "Ho"], "n": 2}).status_code == 200
    assert server.client.get("/etc/passwd").status_code == 404
    after = read()
    change = {name: after[name] - before.get(name, 0) for name in after}
    assert change["lampo_time_to_first_token_seconds_count{}"] == 4
    assert change["lampo_inter_token_latency_seconds_count{}"] == 4 * 15
    assert change["lampo_e2e_request_latency_seconds_count{}"] == 2
    assert change['lampo_request_finished_total{,reason="length"}'] == 4
    assert change['lampo_http_requests_total{route="/v1/completions",status="200"}'] == 1
    assert change['lampo_http_requests_total{route="other",status="404"}'] == 1
    assert after['lampo_kv_cache_pages_by_state{,state="used"}'] == 10
    assert after["lampo_prefix_cache_hit_tokens_total{}"] == 16


def test_every_route_wants_a_key(tmp_path: Path) -> None:
    """All routes the app knows, and some it does not; /health alone is open."""
    engine = FakeAsyncLLM(tmp_path)
    app = create_app(engine, Settings("tiny", api_keys=("first-key", "second-key")))  # type: ignore[arg-type]
    paths = [*app.openapi()["paths"], "/openapi.json"]
    assert len(paths) >= 9
    wrong = ["", "Bearer", "Bearer first-ke", "Bearer first-key2", "Basic first-key",
             "first-key", "Bearer first-key, Bearer second-key"]  # fmt: skip
    with running(engine, api_keys=("first-key", "second-key")) as server:
        server.client.headers.pop("authorization")
        for path in [*paths, "/nope", "/docs", "/health/../metrics", "//health"]:
            for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
                for key in wrong if method == "GET" else [""]:
                    headers = {"authorization": key} if key else {}
                    response = server.client.request(method, path, headers=headers)
                    is_open = path == "/health" and method in ("GET", "HEAD")
                    wanted = 200 if is_open else 401
                    assert response.status_code == wanted, (method, path, key)
                    assert (wanted == 401) == ("www-authenticate" in response.headers)
        for key in ("first-key", "second-key"):
            headers = {"authorization": f"Bearer {key}"}
            assert server.client.get("/metrics", headers=headers).status_code == 200
            assert server.post("/v1/completions", PROMPT, headers=headers).status_code == 200
        twice = [("authorization", "Bearer first-key"), ("authorization", "Bearer first-key")]
        assert server.client.get("/metrics", headers=twice).status_code == 401


def test_host_names(tmp_path: Path) -> None:
    with running(FakeAsyncLLM(tmp_path), allowed_hosts=("localhost", "::1")) as server:
        for host, status in (("localhost:80", 200), ("[::1]:8000", 200), ("evil.test", 403)):
            response = server.client.get("/health", headers={"host": host})
            assert response.status_code == status
        error_of(response, 403, "host_not_allowed")


def test_log_lines_are_short() -> None:
    try:
        raise ValueError("x" * 70_000)
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("a", logging.ERROR, "f", 1, "path %s", ("y" * 70_000,), info)
    lines = ShortLines("lampo: %(message)s").format(record).split("\n")
    assert lines[0].startswith("lampo: path yyy")
    assert lines[-1].startswith("ValueError: xxx")
    assert max(map(len, lines)) < 600
    assert any("test_server.py" in line for line in lines)


def test_settings_are_checked() -> None:
    for bad in ({"api_keys": ("",)}, {"api_keys": ("a b",)}, {"api_keys": ("ключ",)},
                {"max_n": 0}, {"drain_timeout": float("nan")}, {"model_name": ""},
                {"client_share": 1.1}):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            Settings(**{"model_name": "tiny", **bad})
    assert "hidden" not in repr(Settings("tiny", api_keys=("hidden",)))
