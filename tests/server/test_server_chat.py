# SPDX-License-Identifier: Apache-2.0
"""Chats over HTTP as OpenAI's clients send them: tool history, prefills, structures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_async_llm import FakeAsyncLLM
from http_server import Running, running, sse

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
STRUCTURES: dict[str, dict[str, Any]] = {
    "structured_outputs": {"structured_outputs": {"regex": "a+"}},
    "response_format": {"response_format": {"type": "json_object"}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(FakeAsyncLLM(tmp_path_factory.mktemp("tiny"))) as found:
        yield found


def prompt_of(server: Running, body: dict[str, Any]) -> str:
    reply = server.post("/tokenize", body)
    assert reply.status_code == 200, reply.text
    found = server.post("/v1/chat/completions", {**body, "max_tokens": 1})
    assert found.status_code == 200, found.text
    assert found.json()["usage"]["prompt_tokens"] == reply.json()["count"]
    tokens = {"tokens": reply.json()["tokens"]}
    return str(server.post("/detokenize", tokens).json()["prompt"])


def test_tool_history(server: Running) -> None:
    function = {"name": "find", "arguments": "{}"}
    call = {"id": "call_1", "type": "function", "function": function}
    answer = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "found"}
    text = prompt_of(server, {"messages": [*CHAT["messages"], answer, result]})
    del answer["content"]
    assert prompt_of(server, {"messages": [*CHAT["messages"], answer, result]}) == text
    assert "None" not in text and "found" in text


def test_prefill(server: Running) -> None:
    messages = [*CHAT["messages"], {"role": "assistant", "content": "The"}]
    assert prompt_of(server, {"messages": messages}).endswith("assistant\nThe")
    asked = {"messages": messages, "continue_final_message": True}
    assert prompt_of(server, asked).endswith("assistant\nThe")
    asked = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    assert prompt_of(server, asked).endswith("assistant\nThe")
    for fields in ({"add_generation_prompt": True}, {"continue_final_message": False}):
        assert prompt_of(server, {"messages": messages, **fields}).endswith("assistant\n")
    both = {"continue_final_message": True, "add_generation_prompt": True}
    reply = server.post("/v1/chat/completions", {**CHAT, **both})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "continue_final_message"


@pytest.mark.parametrize("field", STRUCTURES)
def test_a_structure_beyond_its_limits_is_the_clients_error(server: Running, field: str) -> None:
    chat = {"messages": [{"role": "user", "content": "COSTS"}], **STRUCTURES[field]}
    reply = server.post("/v1/chat/completions", chat)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == (field, "invalid_value")
    assert "too many items" in error["message"]
    *_, last = sse(server.post("/v1/chat/completions", {**chat, "stream": True}).text)
    assert last["error"] == error


def test_schemas_are_closed_unless_strict_is_false(server: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for strict in (None, True, False):
        form = {"name": "x", "schema": schema, "strict": strict}
        body = {**CHAT, "response_format": {"type": "json_schema", "json_schema": form}}
        assert server.post("/v1/chat/completions", {**body, "max_tokens": 1}).status_code == 200
        wanted = server.engine.added[-1]["params"].structured_outputs
        assert wanted.disable_additional_properties == (strict is not False)
