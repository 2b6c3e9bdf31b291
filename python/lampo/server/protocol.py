# SPDX-License-Identifier: Apache-2.0
"""The bodies of requests. Types and names are checked here, ranges by SamplingParams.

JSON is read strictly: no NaN, no lone surrogates, no coercion of types, no unknown fields. Lists
stop at their first bad item, so that a long list of mistakes costs no more than a short one.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lampo.sampling_params import (
    MAX_ALLOWED_TOKEN_IDS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from lampo.text.structured_limits import MAX_CHOICES

T = TypeVar("T")
MAX_TOKENS_LISTED = 1 << 22  # more than a body holds
MAX_MESSAGES = 1 << 16

ListOf = Annotated[list[T], Field(fail_fast=True, max_length=MAX_TOKENS_LISTED)]
TokenIds = ListOf[int]
Ignored = Annotated[Any, Field(description="Accepted and ignored.")]


class Body(BaseModel):
    """A request's body: what is not listed is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = Field(None, max_length=512, description="Absent: the one that is served.")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, data: Any) -> Any:
        """Leaves the first of many unknown fields to be complained about."""
        if not isinstance(data, dict) or len(data) <= len(cls.model_fields):
            return data
        unknown = next(name for name in data if name not in cls.model_fields)
        known = {name: data[name] for name in cls.model_fields if name in data}
        return {**known, unknown: data[unknown]}


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="Usage so far, in every chunk.")


class Structure(BaseModel):
    """lampo.StructuredOutputs: what the text has to match, one of the first five."""

    model_config = ConfigDict(strict=True, extra="forbid", serialize_by_alias=True)

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    grammar: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True, max_length=MAX_CHOICES)] | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False


class SamplingBody(Body):
    """What both kinds of completion can be told; null is as good as absent."""

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_LOGIT_BIAS)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True, max_length=MAX_STOP_STRINGS)] | None = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: (
        Annotated[list[int], Field(fail_fast=True, max_length=MAX_STOP_TOKEN_IDS)] | None
    ) = None
    allowed_token_ids: (
        Annotated[list[int], Field(fail_fast=True, max_length=MAX_ALLOWED_TOKEN_IDS)] | None
    ) = None
    bad_words: Annotated[list[str], Field(fail_fast=True, max_length=MAX_BAD_WORDS)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    logprobs_mode: str | None = Field(None, max_length=64, description="raw or processed.")
    structured_outputs: Structure | None = None
    priority: int | None = Field(None, description="Smaller is sooner.")
    cache_salt: str | None = Field(
        None, min_length=1, max_length=256, description="Prefixes are shared under one salt only."
    )

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None


Prompt = Annotated[
    str | TokenIds | ListOf[str] | ListOf[TokenIds],
    Field(description="A text, token ids, or a list of either."),
]


class CompletionRequest(SamplingBody):
    prompt: Prompt
    max_tokens: int | None = Field(None, description="Default: 16.")
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = Field(None, description="Only n is supported.")
    suffix: None = Field(None, description="Not supported.")


class JSONSchema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(max_length=256)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Annotated[str, Field(pattern="^(text|json_object|json_schema)$")]
    json_schema: JSONSchema | None = None


Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_MESSAGES)]
Tools = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=1024)]


class ChatInput(Body):
    """What a chat template is given."""

    messages: Messages
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatRequest(SamplingBody, ChatInput):
    max_tokens: int | None = None
    max_completion_tokens: int | None = Field(None, description="Default: up to the context.")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tool_choice: Annotated[str, Field(pattern="^(none|auto)$")] | None = None
    reasoning_effort: str | None = Field(None, max_length=64, description="For the template.")
    parallel_tool_calls: Ignored = None


class TokenizeRequest(Body):
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    tokens: TokenIds
