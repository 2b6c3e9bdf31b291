# SPDX-License-Identifier: Apache-2.0
"""The bodies of answers, as types: they are built as plain dicts, which costs least per token."""

from __future__ import annotations

import json
from typing import Any

from typing_extensions import NotRequired, TypedDict


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class LegacyLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[str | int | None]


class Completion(TypedDict):
    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]


class ChatMessage(TypedDict):
    role: str
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None


class ChatCompletion(TypedDict):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(TypedDict, total=False):
    role: str
    content: str


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatChunk(TypedDict):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class Model(TypedDict):
    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    object: str
    data: list[Model]


class Tokens(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: NotRequired[list[str]]


class Text(TypedDict):
    prompt: str


class HealthReport(TypedDict):
    status: str


Json = dict[str, Any]

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_LONG_LIST = 256  # items


def encode_json(value: Any) -> str:
    """JSON of an answer. Long lists are encoded in parts, between which other threads can run:
    the encoder holds Python's lock."""
    if isinstance(value, dict):
        members = [f"{_ENCODER.encode(key)}:{encode_json(item)}" for key, item in value.items()]
        return "{" + ",".join(members) + "}"
    if isinstance(value, list) and len(value) > _LONG_LIST:
        starts = range(0, len(value), _LONG_LIST)
        parts = [_ENCODER.encode(value[i : i + _LONG_LIST])[1:-1] for i in starts]
        return "[" + ",".join(parts) + "]"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[" + ",".join(map(encode_json, value)) + "]"
    return _ENCODER.encode(value)
