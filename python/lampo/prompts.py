# SPDX-License-Identifier: Apache-2.0
"""Prompts and their parameters as arguments: single or several, and their length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lampo.checks import is_integer
from lampo.error_text import shown
from lampo.sampling_params import SamplingParams

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


def prompt_list(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """The prompts: one, or those of a list, a generator or another iterable.

    Token ids are a sequence or a one-dimensional array or tensor of integers.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, bytes | bytearray | Mapping) or not isinstance(prompts, Iterable):
        raise TypeError(
            f"prompts: expected a text, token ids or a list of them, got {shown(prompts)}"
        )
    if getattr(prompts, "ndim", 1) == 0:  # an array or tensor of one number
        raise TypeError(f"prompts: expected a text or a list of token ids, got {shown(prompts)}")
    listed: list[Any] = list(prompts)
    if listed and is_integer(listed[0]):
        return [listed]
    for i, prompt in enumerate(listed):
        if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Iterable):
            raise TypeError(
                f"prompts[{i}]: expected a text or a list of token ids, got {shown(prompt)}"
            )
    return listed


def message_lists(messages: Messages | Sequence[Messages]) -> list[Messages]:
    """The conversations: one, or a list of such."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: expected a list of messages, got {shown(messages)}")
    if len(messages) == 0:
        raise ValueError("messages: expected at least one message")
    if isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]


def params_list(
    params: SamplingParams | Iterable[SamplingParams] | None, count: int
) -> list[SamplingParams]:
    """The parameters of `count` prompts: one for all, or one for each."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    listed = list(params) if isinstance(params, Iterable) else [params]
    if len(listed) != count:
        raise ValueError(f"sampling_params: expected one or {count}, got {len(listed)}")
    for one in listed:
        if not isinstance(one, SamplingParams):
            raise TypeError(f"sampling_params: expected SamplingParams, got {shown(one)}")
    return listed


def check_length(name: str, num_tokens: int, params: SamplingParams, max_model_len: int) -> None:
    """Checks that a prompt leaves room for a token, unless none is to be generated.

    Raises:
        ValueError: it does not; the text begins with `name`.
    """
    room = max_model_len - (1 if params.max_tokens else 0)
    if num_tokens > room:
        raise ValueError(
            f"{name}: has {num_tokens} tokens, but the context of {max_model_len} leaves room "
            f"for {room}"
        )
