# SPDX-License-Identifier: Apache-2.0
"""Bad input is never an internal error and never slow: hostile bodies by hand and by generator."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from checkpoints import make_checkpoint
from fake_async_llm import FakeAsyncLLM
from http_server import Running, running, wait_until
from hypothesis import HealthCheck
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi_checks

from lampo.async_llm import AsyncLLM
from lampo.llm import LLM

POSTS = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
CHAT = b'{"messages": [{"role": "user", "content": "Hi"}]'
MB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(FakeAsyncLLM(tmp_path_factory.mktemp("tiny"))) as found:
        yield found


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    make_checkpoint(folder)
    engine = AsyncLLM(LLM(folder, max_num_seqs=4), max_waiting=100)
    with running(engine) as found:
        yield found


def assert_idle(server: Running) -> None:
    """Nothing is left behind in the engine."""
    if isinstance(server.engine, AsyncLLM):
        engine = server.engine
        wait_until(lambda: engine.stats().num_running + engine.stats().num_waiting == 0)
        stats = engine.stats()
        assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages
        assert engine.health().alive
    else:
        wait_until(lambda: not server.engine.running)


def refused(server: Running, path: str, body: bytes, limit: float = 2.0) -> str:
    """Sends a bad body; the answer is an error of the caller's, in its shape, and in time."""
    start = time.perf_counter()
    reply = server.post(path, body)
    seconds = time.perf_counter() - start
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:200])
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) <= 300
    assert seconds < limit, f"{seconds:.2f} s"
    assert_idle(server)
    message: str = error["message"]
    return message


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b'{"prompt": "a", "prompt"}',
        b'{"prompt": "a"} {}',
        b'{"prompt": "\xff\xfe"}',
        b'\xef\xbb\xbf{"prompt": "a", "x": 1}',
        b'{"prompt": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
        b'{"prompt": "a", "seed": ' + b"9" * 4_000 + b"}",
        b'{"prompt": ' + b"[" * 100_000,
        b'{"messages": ' + b"[" * 100 + b"]" * 100 + b"}",
        b"[" * MB,
        b'{"a":' * 200_000,
        b'{"prompt": {"a": 1}, "messages": {"b": 2}, "tokens": {}}',
        b"\x00" * 100,
        b'{"' + b"x" * MB + b'": 1}',
        b"{" + b",".join(b'"k%d": 1' % i for i in range(100_000)) + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_hostile_bodies(server: Running, path: str, body: bytes) -> None:
    refused(server, path, body)


@pytest.mark.parametrize(
    "value",
    [b"NaN", b"-Infinity", b'"\\ud800"', b'"\xc3("', b"[" * 300 + b"]" * 300, b"01", b"'a'"],
)
def test_json_is_strict(server: Running, value: bytes) -> None:
    """Also in an unused field."""
    body = b'{"prompt": "Hi", "max_tokens": 1, "metadata": ' + value + b"}"
    assert refused(server, "/v1/completions", body).startswith("body: is not JSON")


def listed(item: bytes, size: int = MB) -> bytes:
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "field",
    [
        b'"stop": ' + listed(b'"a"'),
        b'"stop": ' + listed(b"1"),
        b'"stop": "' + b"a" * MB + b'"',
        b'"stop_token_ids": ' + listed(b"1"),
        b'"stop_token_ids": ' + listed(b'"a"'),
        b'"logit_bias": {' + b",".join(b'"%d": 1' % i for i in range(100_000)) + b"}",
        b'"logit_bias": {' + b",".join(b'"k%d": null' % i for i in range(60_000)) + b"}",
        b'"model": "' + b"a" * MB + b'"',
        b'"tools": ' + listed(b"1"),
        b'"tools": ' + listed(b"{}", 100_000) + b', "x": 1',
        b'"cache_salt": "' + b"a" * MB + b'"',
        b'"chat_template_kwargs": {"documents": ' + b"[" * 90 + b"]" * 90 + b"}",
        b'"stream_options": ' + listed(b"1"),
        b'"metadata": ' + listed(b"1") + b', "unknown": 1',
    ],
    ids=lambda field: repr(field[:24]),
)
def test_large_fields(server: Running, path: str, field: bytes) -> None:
    start = CHAT if "chat" in path else b'{"prompt": "Hi"'
    refused(server, path, start + b", " + field + b"}")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("item", [b"1", b'"a"', b"[1]", b"[]", b"{}", b"null", b"true", b"1e9"])
def test_large_lists(server: Running, path: str, item: bytes) -> None:
    """Right and wrong items alike: too many, or of the wrong kind."""
    name = {"/v1/chat/completions": b"messages", "/detokenize": b"tokens"}.get(path, b"prompt")
    if (path, item) == ("/detokenize", b"1"):
        return  # as many tokens as one likes
    refused(server, path, b'{"' + name + b'": ' + listed(item) + b"}")


def test_long_chats_do_not_hold_up_others(server: Running) -> None:
    """They are rendered and tokenized beside the event loop."""
    many = listed(b'{"role":"user","content":"a"}')
    parts = b'[{"role": "user", "content": ' + listed(b'{"type":"text","text":"a"}') + b"}]"
    for messages in (many, parts):
        slow = threading.Thread(
            target=refused,
            args=(server, "/v1/chat/completions", b'{"messages": ' + messages + b"}", 10.0),
        )
        slow.start()
        waits = []
        while slow.is_alive():
            start = time.perf_counter()
            assert httpx.get(f"{server.url}/health").status_code == 200
            waits.append(time.perf_counter() - start)
        slow.join()
        assert max(waits) < 1.0


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "text"},
        {"type": "text", "text": {"__html": "x"}},
        "text",
        None,
    ],
)
def test_nothing_is_fetched(server: Running, part: Any) -> None:
    body = {"messages": [{"role": "user", "content": [part]}]}
    message = refused(server, "/v1/chat/completions", json.dumps(body).encode())
    assert message.startswith("messages[0].content[0]")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)


def fuzz_body(server: Running, data: st.DataObject, path: str) -> int:
    """A good body with one or two fields replaced by any JSON; the answer's status."""
    schema = server.client.get("/openapi.json").json()
    reference = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = reference["schema"]["$ref"].rpartition("/")[2]
    fields = st.sampled_from(sorted(schema["components"]["schemas"][name]["properties"]))
    body: dict[str, Any] = {"prompt": "Hi"}
    if "chat" in path:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
    if path == "/detokenize":
        body = {"tokens": [20]}
    body |= data.draw(st.dictionaries(fields, JSON, min_size=1, max_size=2))
    reply = server.post(path, body)
    assert reply.status_code in (200, 400, 404), (body, reply.text)
    assert_idle(server)
    return reply.status_code


SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize("path", POSTS)
def test_any_json_in_any_field(server: Running, path: str) -> None:
    seen = set()

    @hypothesis.settings(max_examples=60, **SETTINGS)
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        seen.add(fuzz_body(server, data, path))

    check()
    assert {200, 400} <= seen


def fuzz_operations(server: Running, max_examples: int) -> None:
    """Every operation of the published OpenAPI, with data that fits and data that does not."""
    checks = [
        openapi_checks.status_code_conformance,
        openapi_checks.content_type_conformance,
        openapi_checks.response_schema_conformance,
        not_a_server_error,
    ]
    schema = schemathesis.openapi.from_dict(server.client.get("/openapi.json").json())
    schema.config.update(base_url=server.url)
    count = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(max_examples=max_examples, **SETTINGS)
        @hypothesis.given(
            case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=checks, timeout=10)

        check()
        count += 1
    assert count >= 8
    assert_idle(server)
    assert server.client.get("/health").status_code == 200


def test_published_operations(server: Running) -> None:
    fuzz_operations(server, 15)


@pytest.mark.slow
@pytest.mark.parametrize("path", POSTS)
def test_any_json_in_any_field_of_a_real_engine(real_server: Running, path: str) -> None:
    seen = set()

    @hypothesis.settings(max_examples=300, **SETTINGS)
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        seen.add(fuzz_body(real_server, data, path))

    check()
    assert {200, 400} <= seen


@pytest.mark.slow
def test_published_operations_of_a_real_engine(real_server: Running) -> None:
    fuzz_operations(real_server, 60)


@pytest.mark.slow
def test_published_operations_at_length(server: Running) -> None:
    fuzz_operations(server, 400)
