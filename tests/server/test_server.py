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
from http_server import Running, running, sse, wait_until
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


def error_of(response: Any, status: int, code: str | None = None) -> dict[str, Any]:
    """The error of an answer, after a check of its shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) <= 300
    assert "secret" not in response.text and "Traceback" not in response.text
    if code is not None:
        assert error["code"] == code
    return error


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


def optional_fields(params: type) -> list[str]:
    """Fields of OpenAI's client that a request may leave out."""
    return sorted(set(params.__annotations__) - {"messages", "model", "prompt"})


@pytest.mark.parametrize(
    ("path", "body", "params"),
    [
        (
            "/v1/completions",
            PROMPT,
            openai.types.completion_create_params.CompletionCreateParamsBase,
        ),
        (
            "/v1/chat/completions",
            CHAT,
            openai.types.chat.completion_create_params.CompletionCreateParamsBase,
        ),
    ],
)
def test_null_is_absent_for_openais_fields(
    server: Running, path: str, body: Any, params: type
) -> None:
    names = optional_fields(params)
    assert len(names) >= 15
    reply = server.post(path, {**body, "model": None, **dict.fromkeys(names)})
    assert reply.status_code == 200, reply.text
    options: Any = {"include_usage": None, "include_obfuscation": None}
    body = {**body, "stream": True, "stream_options": options}
    assert server.post(path, body).status_code == 200


def test_openais_fields_without_effect(client: openai.OpenAI) -> None:
    messages: Any = CHAT["messages"]
    done = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=2, modalities=["text"], verbosity="low",
        prediction={"type": "content", "content": "Hello"}, store=False, metadata={"a": "b"},
        service_tier="auto", user="u", safety_identifier="s", prompt_cache_key="k",
        reasoning_effort="low", parallel_tool_calls=True, extra_body={"functions": None},
    )  # fmt: skip
    assert done.usage is not None and done.usage.completion_tokens == 2
    stream = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=2, stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )  # fmt: skip
    assert list(stream)[-1].usage is not None


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": True, "stream_options": {"obfuscate": True}}, "stream_options.obfuscate"),
        ({"response_format": {"type": "text", "strict": 1}}, "response_format.strict"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "x": 1}}},
            "response_format.json_schema.x",
        ),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"x" * 200: 1}, "x" * 64),
    ],
)
def test_unknown_fields_are_named(server: Running, body: Any, param: str) -> None:
    reply = server.post("/v1/chat/completions", {**CHAT, **body})
    error = error_of(reply, 400, "unknown_field")
    assert error["param"] == param
    assert error["message"] == f"unknown field {param!r}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("function_call", "auto"),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("moderation", {"model": "m"}),
        ("web_search_options", {}),
    ],
)
def test_fields_that_would_change_the_answer_are_refused(
    server: Running, name: str, value: Any
) -> None:
    error = error_of(server.post("/v1/chat/completions", {**CHAT, name: value}), 400)
    assert error["param"] == name
    assert error["message"].startswith(f"{name}: ")


def test_the_context_is_exceeded(client: openai.OpenAI) -> None:
    """OpenAI's code, by which clients shorten a conversation."""
    with pytest.raises(openai.BadRequestError) as completion:
        client.completions.create(model="tiny", prompt="a" * 300)
    messages: Any = [{"role": "user", "content": "x" * 10_000}]
    with pytest.raises(openai.BadRequestError) as chat:
        client.chat.completions.create(model="tiny", messages=messages)
    assert (completion.value.code, completion.value.param) == ("context_length_exceeded", "prompt")
    assert (chat.value.code, chat.value.param) == ("context_length_exceeded", "messages")


def test_the_last_of_duplicate_keys_counts(server: Running) -> None:
    body = b'{"prompt": "Hello", "max_tokens": 1, "max_tokens": 3}'
    assert server.post("/v1/completions", body).json()["usage"]["completion_tokens"] == 3


def test_error_bodies_are_short(server: Running) -> None:
    long = "x" * 70_000
    for path, body in (
        ("/v1/completions", {"prompt": "a", "model": long[:500]}),
        ("/v1/completions", {"prompt": "a", long: 1}),
        ("/v1/completions", {"prompt": "a", "logprobs_mode": long}),
        ("/v1/completions", {"prompt": "a", "structured_outputs": {"regex": "(" + long}}),
        ("/v1/completions", {"prompt": "a", "structured_outputs": {"json": long}}),
        ("/v1/completions", {"prompt": "a", "structured_outputs": {long: 1}}),
        ("/v1/completions", {"prompt": "a", "seed": int("9" * 4000)}),
        ("/v1/chat/completions", {"messages": [{"role": long, "content": "a"}]}),
        ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {long: 1}}),
        ("/v1/chat/completions", {**CHAT, "tool_choice": long}),
    ):
        reply = server.post(path, body)
        assert 400 <= reply.status_code < 500
        assert len(reply.content) < 600
    assert len(server.client.get("/v1/models/" + long[:9000]).content) < 600


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


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "prompt", "missing_field"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
        ({"prompt": [True]}, "prompt", "invalid_value"),
        ({"prompt": [320]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [10**30]}, "prompt", "invalid_value"),
        ({"prompt": "a" * 300}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a"] * 65}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 60, "n": 3}, "n", "invalid_value"),
        ({"prompt": "a", "n": 0}, "n", "invalid_value"),
        (
            {"prompt": "a", "structured_outputs": {"grammar": "start: /a/"}},
            "grammar",
            "invalid_value",
        ),
        ({"prompt": "a", "n": 17}, "n", "invalid_value"),
        ({"prompt": "a", "n": "1"}, "n", "invalid_value"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"prompt": "a", "temperature": -0.1}, "temperature", "invalid_value"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "invalid_value"),
        ({"prompt": "a", "top_p": 0}, "top_p", "invalid_value"),
        ({"prompt": "a", "seed": 10**40}, "seed", "invalid_value"),
        ({"prompt": "a", "stop": ""}, "stop", "invalid_value"),
        ({"prompt": "a", "stop": ["x"] * 65}, "stop", "invalid_value"),
        ({"prompt": "a", "stop": ["x" * 1025]}, "stop", "invalid_value"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"prompt": "a", "logit_bias": [1]}, "logit_bias", "invalid_value"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "invalid_value"),
        ({"prompt": "a", "logprobs": -1}, "logprobs", "invalid_value"),
        ({"prompt": "a", "best_of": 2}, "best_of", None),
        ({"prompt": "a", "suffix": "b"}, "suffix", "unsupported_value"),
        ({"prompt": "a", "stream": "yes"}, "stream", "invalid_value"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", None),
        ({"prompt": "a", "stream_options": {"x": 1}, "stream": True}, "stream_options.x", None),
        ({"prompt": "a", "min_tokens": 9, "max_tokens": 4}, "min_tokens", "invalid_value"),
        ({"prompt": "a", "priority": 2**40}, "priority", "invalid_value"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt", "invalid_value"),
        ({"prompt": "a", "model": 3}, "model", "invalid_value"),
        ({"prompt": "a", "max_tokenz": 4}, "max_tokenz", "unknown_field"),
        ({"prompt": "a", "echo": True, "logprobs": 1, "stream": True}, "echo", None),
    ],
)
def test_bad_completions(server: Running, body: Any, param: str, code: str | None) -> None:
    error = error_of(server.post("/v1/completions", body), 400, code)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert not server.engine.running


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": 3, "content": "a"}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]},
            "messages",
        ),
        ({**CHAT, "chat_template_kwargs": {"chat_template": "{{ 7 * 7 }}"}}, "template_kwargs"),
        ({**CHAT, "chat_template_kwargs": {"enable_thinking": 1}}, "template_kwargs"),
        ({**CHAT, "top_logprobs": 2}, "top_logprobs"),
        ({**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({**CHAT, "logprobs": 3}, "logprobs"),
        ({**CHAT, "max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens"),
        ({**CHAT, "tool_choice": "required"}, "tool_choice"),
        ({**CHAT, "tools": [3]}, "tools"),
        ({**CHAT, "response_format": {"type": "xml"}}, "response_format.type"),
        ({**CHAT, "response_format": {"type": "json_schema"}}, "response_format"),
        (
            {**CHAT, "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"a": "x" * 70_000}}}},
            "response_format",
        ),
        ({**CHAT, "structured_outputs": {}}, "structured_outputs"),
        ({**CHAT, "structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        (
            {**CHAT, "structured_outputs": {"regex": "a"},
             "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({**CHAT, "logprobs_mode": "cooked"}, "logprobs_mode"),
        ({**CHAT, "allowed_token_ids": []}, "allowed_token_ids"),
        ({**CHAT, "functions": []}, "functions"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
    ],
)  # fmt: skip
def test_bad_chats(server: Running, body: Any, param: str) -> None:
    assert error_of(server.post("/v1/chat/completions", body), 400)["param"] == param
    assert not server.engine.running


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", **CHAT}),
        ("/tokenize", {"prompt": 3}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [320]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "ab"}),
        ("/detokenize", {"tokens": [1.0]}),
    ],
)
def test_bad_tokens(server: Running, path: str, body: Any) -> None:
    error_of(server.post(path, body), 400)


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


def test_engine_errors(server: Running) -> None:
    full = server.post("/v1/completions", {"prompt": "FULL"})
    assert error_of(full, 429, "queue_full")["type"] == "rate_limit_error"
    assert full.headers["retry-after"] == "3"
    error_of(server.post("/v1/completions", {"prompt": "DEAD"}), 503, "engine_dead")
    error_of(server.post("/v1/completions", {"prompt": "DIES"}), 503, "engine_dead")
    error_of(server.post("/v1/completions", {"prompt": "FAILS"}), 500, "generation_failed")
    error_of(server.post("/v1/completions", {"prompt": "BUG"}), 500, "internal_error")
    both = {"prompt": ["Hello", "FULL"]}  # the first is not left running
    error_of(server.post("/v1/completions", both), 429)
    assert not server.engine.running


@pytest.mark.parametrize("prompt", ["DIES", "FAILS", ["Hello", "DIES"]])
def test_errors_within_a_stream(server: Running, client: openai.OpenAI, prompt: Any) -> None:
    *chunks, last = sse(server.post("/v1/completions", {"prompt": prompt, "stream": True}).text)
    assert chunks
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in json.dumps(last)
    wait_until(lambda: not server.engine.running)
    with pytest.raises(openai.APIError):
        list(client.completions.create(model="tiny", prompt=prompt, stream=True))


def test_health(server: Running) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    for state, status in (
        (Health(alive=True, busy=False, heartbeat_age=1e6), 200),
        (Health(alive=True, busy=True, heartbeat_age=1e6), 503),
        (Health(alive=False, busy=False, heartbeat_age=0.0), 503),
    ):
        server.engine.state = state
        assert server.client.get("/health").status_code == status
    server.engine.state = Health(alive=True, busy=False, heartbeat_age=0.0)


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
