# SPDX-License-Identifier: Apache-2.0
"""What a request asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lampo.checks import check_integer, check_number
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
LOGPROBS_MODES = ("raw", "processed")
DEFAULT_MAX_TOKENS = 256

# The caps that the engine relies on: name -> (lowest, highest, whether the lowest is excluded).
_RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 100.0, False),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
    "repetition_penalty": (0.0, 100.0, True),
}
_INTEGER_RANGES: dict[str, tuple[int, int]] = {
    "n": (1, MAX_N),
    "max_tokens": (0, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "top_k": (-1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}


@dataclass
class SamplingParams:
    """How to continue a prompt. Fields left at None take the model's default.

    Attributes:
        n: completions per prompt; completion i uses ``seed + i``.
        max_tokens: most tokens to generate (``max_new_tokens`` is an alias). Default: the model's
            generation_config, else 256. 0 gives an empty completion.
        min_tokens: end-of-sequence and stop tokens are not sampled before this many tokens.
        temperature: divides the logits; 0 is greedy. Default: the model's, else 1.
        top_p: keep the most probable tokens whose mass reaches this, in (0, 1]. Default: the
            model's, else 1 (off).
        top_k: keep this many of the most probable tokens; 0 or -1: all.
        min_p: keep tokens of at least this share of the best one's probability, in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt
            or output; in (0, 100], 1 is off.
        presence_penalty, frequency_penalty: subtracted once, and once per occurrence, from tokens
            of the output; in [-2, 2], 0 is off.
        logit_bias: token id -> value in [-100, 100], added to its logit.
        allowed_token_ids: the only tokens that may be drawn; None: all. End of sequence is not
            among them unless it is listed.
        bad_words: strings that are not generated: the last token of each, as the tokenizer spells
            it with and without a space in front, is not drawn after the others.
        seed: makes sampling reproducible, whatever else is in the batch. Default: random.
        stop: string or strings that end the completion: the first to be complete does, of several
            that end together the longest. It is not part of the text.
        include_stop_str_in_output: make it a part.
        stop_token_ids: tokens that end the completion.
        ignore_eos: go on after an end-of-sequence token.
        logprobs: report this many of the best tokens' log-probabilities beside each chosen one
            (0: the chosen alone); None: no report.
        logprobs_mode: "raw", of the model's own distribution, or "processed", of the one that was
            drawn from: after penalties, biases, masks, temperature and cuts. Tokens that were cut
            are not listed then, and a greedy choice is certain.
        prompt_logprobs: the same for every token of the prompt.
        skip_special_tokens: leave special tokens out of the text.
        structured_outputs: a JSON schema, regular expression, choice or grammar that the text has
            to match, see :class:`lampo.StructuredOutputs`.

    Raises:
        ValueError, TypeError: a value of the wrong type or out of its range, by name.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    seed: int | None = None
    stop: str | Sequence[str] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprobs_mode: str = "raw"
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    max_new_tokens: dataclasses.InitVar[int | None] = None

    def __post_init__(self, max_new_tokens: int | None) -> None:
        if max_new_tokens is not None:
            if self.max_tokens is not None and self.max_tokens != max_new_tokens:
                raise ValueError(
                    f"max_new_tokens: is an alias of max_tokens, and they differ: "
                    f"{max_new_tokens} and {self.max_tokens}"
                )
            self.max_tokens = max_new_tokens
        for name, (low, high) in _INTEGER_RANGES.items():
            value = getattr(self, name)
            if value is not None:
                check_integer(name, value, low, high)
        for name, (lowest, highest, open_low) in _RANGES.items():
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, check_number(name, value, lowest, highest, open_low))
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {getattr(self, name)!r}")
        self.stop = _check_strings("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_LENGTH)
        self.bad_words = _check_strings(
            "bad_words", self.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH
        )
        self.stop_token_ids = _check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        self.logit_bias = _check_logit_bias(self.logit_bias)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _check_ids(
                "allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_TOKEN_IDS
            )
            if not self.allowed_token_ids:
                raise ValueError("allowed_token_ids: expected at least one id, or None for all")
        if self.logprobs_mode not in LOGPROBS_MODES:
            raise ValueError(
                f"logprobs_mode: expected one of {', '.join(LOGPROBS_MODES)}, "
                f"got {self.logprobs_mode!r}"
            )
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            raise TypeError(
                "structured_outputs: expected lampo.StructuredOutputs, "
                f"got {self.structured_outputs!r}"
            )
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


def default_fields(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults that a generation_config.json names, under our names."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    fields = {k: generation_config[k] for k in names if k in generation_config}
    if generation_config.get("do_sample") is False:
        fields["temperature"] = 0.0
    if "max_new_tokens" in generation_config:
        fields["max_tokens"] = generation_config["max_new_tokens"]
    return fields


def _check_strings(name: str, value: object, most: int, longest: int) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, Sequence):
        raise TypeError(f"{name}: expected a string or a list of strings, got {value!r}")
    if len(strings) > most:
        raise ValueError(f"{name}: expected at most {most} strings, got {len(strings)}")
    for i, string in enumerate(strings):
        if not isinstance(string, str):
            raise TypeError(f"{name}[{i}]: expected a string, got {string!r}")
        if not 1 <= len(string) <= longest:
            raise ValueError(f"{name}[{i}]: expected 1 to {longest} characters, got {len(string)}")
    return tuple(strings)


def _check_ids(name: str, ids: object, most: int) -> tuple[int, ...]:
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise TypeError(f"{name}: expected a list of token ids, got {ids!r}")
    if len(ids) > most:
        raise ValueError(f"{name}: expected at most {most} ids, got {len(ids)}")
    return tuple(check_integer(f"{name}[{i}]", v, 0, 2**31 - 1) for i, v in enumerate(ids))


def _check_logit_bias(bias: object) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise TypeError(f"logit_bias: expected a mapping of token id to value, got {bias!r}")
    if len(bias) > MAX_LOGIT_BIAS:
        raise ValueError(f"logit_bias: expected at most {MAX_LOGIT_BIAS} entries, got {len(bias)}")
    return {
        check_integer("logit_bias", token_id, 0, 2**31 - 1): check_number(
            f"logit_bias[{token_id}]", value, -100.0, 100.0, False
        )
        for token_id, value in bias.items()
    }
