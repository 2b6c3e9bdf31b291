# SPDX-License-Identifier: Apache-2.0
"""The event loop stays free, whatever a client sends: long work is refused or runs beside it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checkpoints import write_tokenizer
from fake_async_llm import VOCAB_SIZE, FakeAsyncLLM
from http_server import Running, read_all, running

from lampo.text.tokenizer import Tokenizer, TooManyTokensError

MB = 1 << 20
LIMIT = 0.15  # seconds of the loop's own time: three times what a quiet machine may need
HEAD = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    engine = FakeAsyncLLM(tmp_path_factory.mktemp("tiny"), max_model_len=8192)
    with running(engine) as found:
        yield found


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """The longest time of the processor that one callback of an event loop took so far."""
    times = [0.0]
    run = asyncio.Handle._run  # type: ignore[attr-defined]

    def timed(handle: asyncio.Handle) -> None:
        start = time.thread_time()
        run(handle)
        times.append(time.thread_time() - start)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    return lambda: max(times)


def listed(item: bytes, size: int = 4 * MB - 100) -> bytes:
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def keys(count: int, value: bytes = b"1") -> bytes:
    return b"{" + b",".join(b'"key%d":%s' % (i, value) for i in range(count)) + b"}"


COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
# The largest bodies that are read, of many kinds; then those of all kinds that are refused unread.
BODIES = {
    "ids": (COMPLETIONS, b'{"prompt":' + listed(b"1", 2_000_000) + b"}"),
    "texts": (COMPLETIONS, b'{"prompt":' + listed(b'"a"', 4_000_000) + b"}"),
    "lists": (COMPLETIONS, b'{"prompt":' + listed(b"[1]", 460_000) + b"}"),
    "text": (COMPLETIONS, b'{"prompt":"' + b"abc " * (MB - 50) + b'"}'),
    "64 texts": (COMPLETIONS, b'{"prompt":' + listed(b'"%s"' % (b"a" * 4000), 250_000) + b"}"),
    "64 lists": (COMPLETIONS, b'{"prompt":' + listed(listed(b"1", 8000), 500_000) + b"}"),
    "metadata": (COMPLETIONS, b'{"prompt":"a","metadata":' + listed(b"[]", 340_000) + b"}"),
    "metadata, nested": (
        COMPLETIONS,
        b'{"prompt":"a","metadata":' + listed(b"[[[[]]]]", 280_000) + b"}",
    ),
    "metadata, keys": (COMPLETIONS, b'{"prompt":"a","metadata":' + keys(60_000) + b"}"),
    "unknown fields": (COMPLETIONS, keys(60_000)),
    "nested unknown fields": (
        COMPLETIONS,
        b'{"prompt":"a","stream_options":' + keys(60_000) + b"}",
    ),
    "schema": (
        COMPLETIONS,
        b'{"prompt":"a","structured_outputs":{"json":' + keys(40_000, b"[]") + b"}}",
    ),
    "bias": (COMPLETIONS, b'{"prompt":"a","logit_bias":' + keys(60_000) + b"}"),
    "stop": (COMPLETIONS, b'{"prompt":"a","stop":' + listed(b'"a"', 4_000_000) + b"}"),
    "messages": (CHATS, b'{"messages":' + listed(b'{"role":"user","content":"a"}', 700_000) + b"}"),
    "message": (
        CHATS,
        b'{"messages":[{"role":"user","content":"' + b"abc " * (MB - 50) + b'"}]}',
    ),
    "tokenize": ("/tokenize", b'{"prompt":"' + b"abc " * (MB - 50) + b'"}'),
    "token_strs": ("/tokenize", b'{"return_token_strs":true,"prompt":"' + b"a" * 131_000 + b'"}'),
    "detokenize": ("/detokenize", b'{"tokens":' + listed(b"21", 3_000_000) + b"}"),
    "tokens": ("/detokenize", b'{"tokens":' + listed(b"21", 390_000) + b"}"),
    "too many ids": (COMPLETIONS, b'{"prompt":' + listed(b"1") + b"}"),
    "too many lists": (COMPLETIONS, b'{"prompt":"a","metadata":' + listed(b"[[[[]]]]") + b"}"),
    "too many keys": (COMPLETIONS, b'{"prompt":"a","metadata":' + keys(300_000) + b"}"),
    "too many messages": (
        CHATS,
        b'{"messages":' + listed(b'{"role":"user","content":"a"}') + b"}",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_no_body_holds_up_the_event_loop(
    server: Running, longest: Callable[[], float], name: str
) -> None:
    path, body = BODIES[name]
    reply = server.post(path, body)
    assert reply.status_code in (200, 400, 413), reply.text[:300]
    assert longest() < LIMIT, reply.text[:300]
    assert ("too many values" in reply.text) == name.startswith("too many")


def test_a_large_answer_is_made_beside_the_event_loop(
    server: Running, longest: Callable[[], float]
) -> None:
    body = {"prompt": "Hello", "max_tokens": 2000, "n": 4, "logprobs": 20}
    reply = server.post("/v1/completions", body)
    assert len(reply.json()["choices"][3]["logprobs"]["tokens"]) == 2000
    assert longest() < LIMIT


@pytest.mark.parametrize(
    "key", ["", "authorization: Bearer other\r\n", "authorization: Bearer k\r\n"]
)
def test_one_byte_chunks_are_refused(
    tmp_path: Path, longest: Callable[[], float], key: str
) -> None:
    with running(FakeAsyncLLM(tmp_path), api_keys=("k",)) as server, server.raw() as connection:
        connection.sendall(HEAD + key.encode() + b"transfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):  # the server closes
            connection.sendall(b"1\r\nx\r\n" * 700_000)
        assert b" 200 " not in read_all(connection)[:20]
        assert longest() < LIMIT


def test_a_text_is_not_encoded_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of a refusal is the context's, not the text's."""
    write_tokenizer(tmp_path, VOCAB_SIZE)
    tokenizer = Tokenizer.from_directory(tmp_path)
    sizes: list[int] = []
    encode_text = tokenizer._encode_text

    def counted(text: str) -> list[int]:
        sizes.append(len(text))
        return encode_text(text)

    monkeypatch.setattr(tokenizer, "_encode_text", counted)
    with pytest.raises(TooManyTokensError, match="more than 100 tokens"):
        tokenizer.encode("ab" * MB, max_tokens=100)
    assert sum(sizes) < 5000
    ids = tokenizer.encode("ab" * 10_000)
    assert tokenizer.encode("ab" * 10_000, max_tokens=len(ids)) == ids
    with pytest.raises(TooManyTokensError, match=f"has {len(ids)} tokens"):
        tokenizer.encode("ab" * 10_000, max_tokens=len(ids) - 1)
