# SPDX-License-Identifier: Apache-2.0
"""The parameters of a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lampo.parameters import (
    Choice,
    Flag,
    Instance,
    Integer,
    Number,
    Strings,
    TokenIds,
    TokenValues,
    attributes_text,
    check_parameters,
    parameter,
)
from lampo.text.structured_outputs import StructuredOutputs

MAX_N = 128
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 65536
MAX_LOGPROBS = 256
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LENGTH = 256
MAX_ALLOWED_TOKEN_IDS = 2**20
DEFAULT_MAX_TOKENS = 256

LENGTH, SAMPLING, PENALTIES, OUTPUT = "length", "sampling", "penalties", "output"


@dataclass
class SamplingParams:
    """How to continue a prompt. Fields left at None take the model's default.

    Raises:
        ValueError, TypeError: a value of the wrong type or out of its range, by name.
    """

    n: int = field(
        default=1,
        metadata=parameter(
            Integer(1, MAX_N),
            SAMPLING,
            "Completions per prompt; completion i uses seed + i.",
        ),
    )
    max_tokens: int | None = field(
        default=None,
        metadata=parameter(
            Integer(0),
            LENGTH,
            "Most tokens to generate (max_new_tokens is an alias). Default: the model's "
            f"generation_config, else {DEFAULT_MAX_TOKENS}. 0 gives an empty completion.",
        ),
    )
    min_tokens: int = field(
        default=0,
        metadata=parameter(
            Integer(0),
            LENGTH,
            "End-of-sequence and stop tokens are not sampled before this many tokens.",
        ),
    )
    temperature: float | None = field(
        default=None,
        metadata=parameter(
            Number(0.0, 100.0),
            SAMPLING,
            "Divides the logits; 0 is greedy. Default: the model's, else 1.",
        ),
    )
    top_p: float | None = field(
        default=None,
        metadata=parameter(
            Number(0.0, 1.0, open_low=True),
            SAMPLING,
            "Keep the most probable tokens whose mass reaches this, in (0, 1]. Default: the "
            "model's, else 1 (all).",
        ),
    )
    top_k: int | None = field(
        default=None,
        metadata=parameter(
            Integer(-1),
            SAMPLING,
            "Keep this many of the most probable tokens; 0 or -1: all.",
        ),
    )
    min_p: float | None = field(
        default=None,
        metadata=parameter(
            Number(0.0, 1.0),
            SAMPLING,
            "Keep tokens of at least this share of the best one's probability, in [0, 1].",
        ),
    )
    repetition_penalty: float | None = field(
        default=None,
        metadata=parameter(
            Number(0.0, 100.0, open_low=True),
            PENALTIES,
            "Divides positive and multiplies negative logits of tokens in the prompt or output; in "
            "(0, 100], 1 is off, above 1 makes them less likely.",
        ),
    )
    presence_penalty: float = field(
        default=0.0,
        metadata=parameter(
            Number(-2.0, 2.0),
            PENALTIES,
            "Subtracted from the logits of tokens in the output; in [-2, 2], 0 is off.",
        ),
    )
    frequency_penalty: float = field(
        default=0.0,
        metadata=parameter(
            Number(-2.0, 2.0),
            PENALTIES,
            "Subtracted once for every occurrence of a token in the output; in [-2, 2], 0 is off.",
        ),
    )
    logit_bias: Mapping[int, float] = field(
        default_factory=dict,
        metadata=parameter(
            TokenValues(MAX_LOGIT_BIAS, -100.0, 100.0),
            PENALTIES,
            "For each token id, a value in [-100, 100] that is added to its logit.",
        ),
    )
    allowed_token_ids: Sequence[int] | None = field(
        default=None,
        metadata=parameter(
            TokenIds(MAX_ALLOWED_TOKEN_IDS),
            PENALTIES,
            "The only tokens that may be drawn; default: all. End of sequence is not among them "
            "unless it is listed.",
        ),
    )
    bad_words: Sequence[str] = field(
        default=(),
        metadata=parameter(
            Strings(MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH),
            PENALTIES,
            "Strings that are not generated: the last token of each, as the tokenizer spells it "
            "with and without a space in front, is not drawn after the others.",
        ),
    )
    seed: int | None = field(
        default=None,
        metadata=parameter(
            Integer(-(2**63), 2**63 - 1),
            SAMPLING,
            "Makes sampling reproducible, whatever else is in the batch. Default: random.",
        ),
    )
    stop: str | Sequence[str] = field(
        default=(),
        metadata=parameter(
            Strings(MAX_STOP_STRINGS, MAX_STOP_LENGTH),
            LENGTH,
            "Strings that end the completion: the first to be complete does, of several that end "
            "together the longest. It is not part of the text.",
        ),
    )
    include_stop_str_in_output: bool = field(
        default=False,
        metadata=parameter(Flag(), LENGTH, "Make the stop string a part of the text."),
    )
    stop_token_ids: Sequence[int] = field(
        default=(),
        metadata=parameter(TokenIds(MAX_STOP_TOKEN_IDS), LENGTH, "Tokens that end the completion."),
    )
    ignore_eos: bool = field(
        default=False,
        metadata=parameter(Flag(), LENGTH, "Go on after an end-of-sequence token."),
    )
    logprobs: int | None = field(
        default=None,
        metadata=parameter(
            Integer(-1, MAX_LOGPROBS),
            OUTPUT,
            "Report this many of the best tokens' log-probabilities beside each chosen one (0: the "
            "chosen alone; -1: all of the vocabulary), and how many tokens could be drawn. "
            "Default: no report.",
        ),
    )
    prompt_logprobs: int | None = field(
        default=None,
        metadata=parameter(
            Integer(-1, MAX_LOGPROBS), OUTPUT, "The same for every token of the prompt."
        ),
    )
    logprobs_mode: str = field(
        default="raw",
        metadata=parameter(
            Choice(("raw", "processed")),
            OUTPUT,
            "Log-probabilities are raw, of the model's own distribution, or processed, of the one "
            "that was drawn from: after penalties, biases, masks, temperature and cuts. Tokens "
            "that were cut are not listed then, and a greedy choice is certain.",
        ),
    )
    skip_special_tokens: bool = field(
        default=True,
        metadata=parameter(Flag(), OUTPUT, "Leave special tokens out of the text."),
    )
    structured_outputs: StructuredOutputs | None = field(
        default=None,
        metadata=parameter(
            Instance(StructuredOutputs, "lampo.StructuredOutputs"),
            OUTPUT,
            "A JSON schema, regular expression, choice or grammar that the text has to match, see "
            "lampo.StructuredOutputs.",
        ),
    )
    max_new_tokens: dataclasses.InitVar[int | None] = None

    def __post_init__(self, max_new_tokens: int | None) -> None:
        if max_new_tokens is not None:
            if self.max_tokens is not None and self.max_tokens != max_new_tokens:
                raise ValueError(
                    f"max_new_tokens: is an alias of max_tokens, and they differ: "
                    f"{max_new_tokens} and {self.max_tokens}"
                )
            self.max_tokens = max_new_tokens
        check_parameters(self)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise ValueError("allowed_token_ids: expected at least one id, or None for all")
        if self.structured_outputs is not None and self.min_tokens:
            raise ValueError(
                "min_tokens: does not go with structured_outputs, whose grammar says where to end"
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens: expected at most max_tokens, {self.max_tokens}, got {self.min_tokens}"
            )

    def resolved(self, generation_config: Mapping[str, Any]) -> SamplingParams:
        """A copy in which the model's default, or the neutral value, stands for every None."""
        neutral = {
            "max_tokens": max(DEFAULT_MAX_TOKENS, self.min_tokens),
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        defaults = neutral | default_fields(generation_config)
        changes = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        if changes.get("top_k", self.top_k) == -1:
            changes["top_k"] = 0
        return dataclasses.replace(self, **changes)


# Settings of a chat with a model that names none: those of llama.cpp. The neutral ones, temperature
# 1 without cuts, draw too many unlikely tokens from a small model for an answer to hold together.
CHAT_DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}


def chat_config(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """A generation_config for chats: CHAT_DEFAULTS, unless it names sampling settings itself."""
    named = CHAT_DEFAULTS.keys() & default_fields(generation_config).keys()
    return dict(generation_config) if named else {**generation_config, **CHAT_DEFAULTS}


def settings_text(params: SamplingParams) -> str:
    """The temperature and cuts of resolved parameters: "temperature 0.8, top-k 40"."""
    if params.temperature == 0:
        return "greedy"
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    cuts = {name: getattr(params, name) for name in neutral}
    parts = [f"temperature {params.temperature:g}"]
    parts += [
        f"{name.replace('_', '-')} {value:g}"
        for name, value in cuts.items()
        if value != neutral[name]
    ]
    return ", ".join(parts)


def default_fields(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults that a generation_config.json names, under our names."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    fields = {k: generation_config[k] for k in names if k in generation_config}
    if generation_config.get("do_sample") is False:
        fields["temperature"] = 0.0
    if "max_new_tokens" in generation_config:
        fields["max_tokens"] = generation_config["max_new_tokens"]
    return fields


if SamplingParams.__doc__ is not None:  # not with python -OO
    _first, _raises = SamplingParams.__doc__.split("    Raises:")
    SamplingParams.__doc__ = f"{_first}{attributes_text(SamplingParams)}\n\n    Raises:{_raises}"
