# SPDX-License-Identifier: Apache-2.0
"""A request's sampling parameters as arrays, made once and kept up to date.

A step costs the same whether a request has 65,536 biases, a prompt of 65,536 tokens under a
repetition penalty, or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lampo.engine.stop_strings import StopStrings
from lampo.sampling_params import SamplingParams
from lampo.text.structured_outputs import compile_grammar

if TYPE_CHECKING:
    from lampo.text.tokenizer import Tokenizer

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


class SamplingRules:
    """The rules of one request, shared by its completions.

    Attributes:
        eos_ids: end-of-sequence tokens that end a completion; none with ignore_eos.
        stop_ids: tokens that end a completion: eos_ids and stop_token_ids.
        stops: finds the stop strings; None without any.
        allowed: [ceil(vocab_size / 32)] mask of the allowed tokens; None if all are.
        grammar: the grammar at a completion's beginning; None without one.
        changes_logits: whether penalties, biases or masks come before temperature and cuts.
        needs_own_draw: whether a draw by temperature and cuts is not enough.

    Raises:
        ValueError: a token id that is not in the vocabulary, or a grammar that cannot be followed.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: list[int],
        *,
        tokenizer: Tokenizer,
        vocab_size: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
            largest = max(getattr(params, name) or (), default=-1)
            if largest >= vocab_size:
                raise ValueError(
                    f"{name}: token id {largest} is not in the vocabulary of {vocab_size}"
                )
        self.params = params
        self.eos_ids = frozenset() if params.ignore_eos else eos_token_ids
        self.stop_ids = self.eos_ids | frozenset(params.stop_token_ids)
        self.stops = StopStrings(params.stop) if params.stop else None
        self.allowed = (
            None
            if params.allowed_token_ids is None
            else token_mask(params.allowed_token_ids, vocab_size)
        )
        self.has_penalties = bool(
            params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        )
        bad = _token_sequences(params.bad_words, tokenizer)
        self._banned = {ids[0]: -float("inf") for ids in bad if len(ids) == 1}
        self._bad_after: dict[int, list[list[int]]] = {}  # by the second to last token
        for ids in bad:
            if len(ids) > 1:
                self._bad_after.setdefault(ids[-2], []).append(ids)
        # Only the repetition penalty acts on tokens of the prompt.
        prompt = prompt_token_ids if params.repetition_penalty != 1.0 else []
        self.prompt_ids = np.unique(np.array(prompt, dtype=np.int32))
        self.grammar = (
            None
            if params.structured_outputs is None
            else compile_grammar(params.structured_outputs, tokenizer, vocab_size, eos_token_ids)
        )
        self.changes_logits = bool(
            self.has_penalties
            or params.logit_bias
            or params.bad_words
            or self.allowed is not None
            or self.grammar is not None
        )
        self.needs_own_draw = self.changes_logits or (
            params.logprobs is not None and params.logprobs_mode == "processed"
        )

    def biases(self, output: list[int], ban_stop_tokens: bool) -> tuple[Ints, Floats]:
        """Token ids, and the values added to their logits after these tokens of a completion."""
        ids, values = self._biases_and_bans if ban_stop_tokens else self._biases
        if self._bad_after and output:
            ends = [
                bad[-1]
                for bad in self._bad_after.get(output[-1], ())
                if output[1 - len(bad) :] == bad[:-1]
            ]
            if ends:
                ids = np.append(ids, np.array(ends, np.int32))
                values = np.append(values, np.full(len(ends), -np.inf, np.float32))
        return ids, values

    @cached_property
    def _biases(self) -> tuple[Ints, Floats]:
        return _bias_arrays({**self.params.logit_bias, **self._banned})

    @cached_property
    def _biases_and_bans(self) -> tuple[Ints, Floats]:
        stops = dict.fromkeys(self.stop_ids, -float("inf"))
        return _bias_arrays({**self.params.logit_bias, **self._banned, **stops})

    @cached_property
    def prompt_slots(self) -> dict[int, int]:
        """Token of the prompt -> index in `prompt_ids`."""
        return {token_id: slot for slot, token_id in enumerate(self.prompt_ids.tolist())}


class PenaltyCounts:
    """The tokens under penalties, and their numbers of occurrences in one completion."""

    def __init__(self, rules: SamplingRules) -> None:
        self._prompt_slots = rules.prompt_slots
        self._slots: dict[int, int] = {}  # of tokens that are not in the prompt
        self._size = len(rules.prompt_ids)
        self._ids = np.concatenate([rules.prompt_ids, np.zeros(64, np.int32)])
        self._counts = np.zeros(len(self._ids), np.int32)

    @property
    def ids(self) -> Ints:
        return self._ids[: self._size]

    @property
    def counts(self) -> Ints:
        """0: the token is in the prompt only."""
        return self._counts[: self._size]

    def add(self, token_id: int) -> None:
        """Counts one more token of the output."""
        slot = self._prompt_slots.get(token_id)
        if slot is None:
            slot = self._slots.setdefault(token_id, self._size)
            if slot == self._size:
                if slot == len(self._ids):
                    self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                    self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
                self._ids[slot] = token_id
                self._size += 1
        self._counts[slot] += 1


def token_mask(token_ids: Sequence[int], vocab_size: int) -> Ints:
    """A row of ops.sample's allowed_mask: bit i % 32 of word i // 32 stands for token i."""
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _token_sequences(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The words as tokens, at the beginning of a text and after a space, each once."""
    texts = [text for word in words for text in (word, " " + word.lstrip())]
    found = {tuple(tokenizer.encode(text, add_bos=False)) for text in texts}
    return [list(ids) for ids in sorted(found) if ids]


def _bias_arrays(biases: dict[int, float]) -> tuple[Ints, Floats]:
    return (
        np.fromiter(biases.keys(), dtype=np.int32, count=len(biases)),
        np.fromiter(biases.values(), dtype=np.float32, count=len(biases)),
    )
