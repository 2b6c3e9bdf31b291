# SPDX-License-Identifier: Apache-2.0
"""Targets of a load: an AsyncLLM in this process, or a server over HTTP.

The HTTP client is written here for exact times: between a piece's arrival and its time stamp it
only finds the end of a line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lampo.bench.load import Record
from lampo.bench.workload import VOCABULARY_TEXT, Call
from lampo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lampo.async_llm import AsyncLLM

_LINE_LIMIT = 1 << 20
_ERROR_BYTES = 4096


class InProcess:
    """The engine in this process, without a network."""

    def __init__(self, engine: AsyncLLM, temperature: float) -> None:
        self._engine = engine
        self._temperature = temperature

    async def vocabulary(self) -> list[int]:
        return self._engine.llm.tokenizer.encode(VOCABULARY_TEXT, add_bos=False)

    async def call(self, call: Call, record: Record) -> None:
        params = SamplingParams(
            max_tokens=call.max_tokens, temperature=self._temperature, ignore_eos=True
        )
        async with await self._engine.add_request(call.prompt, params) as stream:
            async for piece in stream:
                if piece.token_ids:
                    record.pieces.append(time.perf_counter())
                if piece.request is not None:
                    output = piece.request.outputs[0]
                    if output.error:
                        raise RuntimeError(output.error)
                    record.num_output_tokens = piece.request.metrics.num_output_tokens
                    record.num_cached_tokens = piece.request.metrics.num_cached_tokens


class HTTPServer:
    """A server with POST /v1/completions and /tokenize, as lampo and vLLM have them.

    Raises: ValueError for an invalid URL.
    """

    def __init__(self, url: str, temperature: float, key: str | None, model: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url: expected http://host:port, got {url!r}")
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._netloc = parts.netloc.rpartition("@")[2]
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._temperature = temperature
        self._key = key
        self._model = {} if model is None else {"model": model}

    async def vocabulary(self) -> list[int]:
        body = {"prompt": VOCABULARY_TEXT, "add_special_tokens": False, **self._model}
        text = "".join([line async for line in self._post("/tokenize", body)])
        token_ids: list[int] = json.loads(text)["tokens"]
        return token_ids

    async def call(self, call: Call, record: Record) -> None:
        body = {
            "prompt": call.prompt,
            "max_tokens": call.max_tokens,
            "temperature": self._temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._model,
        }
        async for line in self._post("/v1/completions", body):
            now = time.perf_counter()
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if event["choices"]:
                record.pieces.append(now)
            elif event.get("usage"):
                record.num_output_tokens = event["usage"]["completion_tokens"]
                details = event["usage"].get("prompt_tokens_details") or {}
                record.num_cached_tokens = details.get("cached_tokens", 0)

    async def _post(self, path: str, body: dict[str, Any]) -> AsyncIterator[str]:
        """The lines of an answer as they come. Raises: RuntimeError for an error, OSError."""
        data = json.dumps(body).encode()
        head = (
            f"POST {self._path}{path} HTTP/1.1\r\nhost: {self._netloc}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
        )
        if self._key is not None:
            head += f"authorization: Bearer {self._key}\r\n"
        reader, writer = await asyncio.open_connection(
            self._host, self._port, ssl=self._tls or None, limit=_LINE_LIMIT
        )
        try:
            writer.write(head.encode() + b"\r\n" + data)
            await writer.drain()
            status = (await reader.readline()).split()
            chunked = False
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                chunked |= name.lower() == b"transfer-encoding" and b"chunked" in value.lower()
            if len(status) < 2 or status[1] != b"200":
                raise RuntimeError(_error_text(status, await reader.read(_ERROR_BYTES)))
            rest = b""
            async for piece in _pieces(reader, chunked):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line.rstrip(b"\r").decode()
            if rest:
                yield rest.decode()
        except asyncio.IncompleteReadError:
            raise RuntimeError("the server has closed the connection") from None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _pieces(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    while not chunked and (piece := await reader.read(1 << 16)):
        yield piece
    while chunked:
        size = int((await reader.readuntil(b"\n")).partition(b";")[0], 16)
        piece = await reader.readexactly(size + 2)
        if size == 0:
            return
        yield piece[:-2]


def _error_text(status: list[bytes], body: bytes) -> str:
    """The server's error message, if the body has OpenAI's form."""
    code = status[1].decode("ascii", "replace") if len(status) > 1 else "no answer"
    try:
        return f"{code}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{code}: {body[:200].decode('utf-8', 'replace')}"
