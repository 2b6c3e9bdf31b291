# SPDX-License-Identifier: Apache-2.0
"""The bodies of requests. Types and names are checked here, ranges by SamplingParams, which
has the same fields.

JSON is read strictly: no NaN, no lone surrogates, no coercion of types, no unknown fields. Lists
stop at their first bad item, so that a long list of mistakes costs no more than a short one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from lampo.parameters import (
    Choice,
    Flag,
    Instance,
    Integer,
    Kind,
    Number,
    Strings,
    TokenIds,
    TokenValues,
    parameters,
)
from lampo.sampling_params import SamplingParams
from lampo.text.structured_limits import MAX_CHOICES

T = TypeVar("T")
MAX_TOKENS_LISTED = 1 << 22  # more than a body holds
MAX_MESSAGES = 1 << 16

ListOf = Annotated[list[T], Field(fail_fast=True, max_length=MAX_TOKENS_LISTED)]
Ids = ListOf[int]
Ignored = Annotated[Any, Field(description="Accepted and ignored.")]
Unsupported = Annotated[None, Field(description="Not supported: null only.")]


class Object(BaseModel):
    """A JSON object: fields that are not listed are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, data: Any) -> Any:
        """Drops all unknown fields but the first, which is reported."""
        if not isinstance(data, dict) or len(data) <= len(cls.model_fields):
            return data
        names = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = next(name for name in data if name not in names)
        known = {name: data[name] for name in names if name in data}
        return {**known, unknown: data[unknown]}


class Body(Object):
    """A request's body."""

    model: str | None = Field(None, max_length=512, description="Absent: the one that is served.")


class StreamOptions(Object):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(None, description="Usage so far, in every chunk.")
    include_obfuscation: Ignored = None


class Structure(Object):
    """lampo.StructuredOutputs: what the text has to match, one of the first five."""

    model_config = ConfigDict(serialize_by_alias=True)

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    grammar: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True, max_length=MAX_CHOICES)] | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None


_SCALARS = {Integer: int, Number: float, Flag: bool}
# max_tokens and the log-probabilities differ by endpoint.
SAMPLING_FIELDS = [
    name
    for name in parameters(SamplingParams)
    if name not in ("max_tokens", "logprobs", "prompt_logprobs")
]


def _type_of(kind: Kind) -> Any:
    """The type of a sampling parameter in JSON."""
    match kind:
        case Strings(max_items):
            return str | Annotated[list[str], Field(fail_fast=True, max_length=max_items)]
        case TokenIds(max_items):
            return Annotated[list[int], Field(fail_fast=True, max_length=max_items)]
        case TokenValues(max_items):
            return Annotated[dict[str, float], Field(max_length=max_items)]
        case Choice():
            return Annotated[str, Field(max_length=64)]
        case Instance():
            return Structure
    return _SCALARS[type(kind)]


_definitions: dict[str, Any] = {
    name: (_type_of(found.kind) | None, Field(None, description=found.help))
    for name, (found, _) in parameters(SamplingParams).items()
    if name in SAMPLING_FIELDS
}
_SamplingFields: Any = create_model("_SamplingFields", __base__=Body, **_definitions)


class SamplingBody(_SamplingFields):  # type: ignore[misc]
    """The fields of both kinds of completion; null means absent."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

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
    str | Ids | ListOf[str] | ListOf[Ids],
    Field(description="A text, token ids, or a list of either."),
]


class CompletionRequest(SamplingBody):
    prompt: Prompt
    max_tokens: int | None = Field(None, description="Default: 16.")
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = Field(None, description="Only n is supported.")
    suffix: Unsupported = None


class JSONSchema(Object):
    name: str = Field(max_length=256)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="False: objects may have more properties.")


class ResponseFormat(Object):
    type: Annotated[str, Field(pattern="^(text|json_object|json_schema)$")]
    json_schema: JSONSchema | None = None


# Names of fields of objects within a body, as errors report them.
NESTED_FIELDS = frozenset(
    field.alias or name
    for model in (StreamOptions, Structure, ResponseFormat, JSONSchema)
    for name, field in model.model_fields.items()
)

Messages = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_MESSAGES)]
Tools = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=1024)]


class ChatInput(Body):
    """The input of a chat template."""

    messages: Messages
    tools: Tools | None = None
    add_generation_prompt: bool | None = Field(None, description="Begin an answer.")
    continue_final_message: bool | None = Field(
        None, description="Continue the last message; default: if it is the assistant's."
    )
    chat_template_kwargs: dict[str, Any] | None = None


class ChatRequest(SamplingBody, ChatInput):
    max_tokens: int | None = None
    max_completion_tokens: int | None = Field(None, description="Default: up to the context.")
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tool_choice: Annotated[str, Field(pattern="^(none|auto)$")] | None = None
    reasoning_effort: str | None = Field(None, max_length=64, description="For the template.")
    modalities: list[Literal["text"]] | None = Field(None, max_length=4)

    parallel_tool_calls: Ignored = None
    prediction: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    verbosity: Ignored = None

    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    moderation: Unsupported = None
    web_search_options: Unsupported = None


class TokenizeRequest(Body):
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = Field(None, description="Default: true.")
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    tokens: Ids
