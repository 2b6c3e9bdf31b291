# SPDX-License-Identifier: Apache-2.0
"""What the server refuses, and what it ignores: fields, values, errors of the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_async_llm import FakeAsyncLLM
from http_server import Running, error_of, running, sse, wait_until

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
    assert error_of(server.post(path, body), 400)["code"] in ("invalid_value", "missing_field")


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
