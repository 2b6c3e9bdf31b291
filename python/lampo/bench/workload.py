# SPDX-License-Identifier: Apache-2.0
"""The prompts and lengths of a load, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lampo.checks import check_integer

MAX_LENGTH = 1 << 20
_WORDS = """
    the of and to in a is that for it as was with be by on not he his but at are this have from or
    had an they which one you were all her she there would their we him been has when who will no
    more if out so up said what its about than into them can only other time new some could these
    two may first then do any like my now over such our man me even most made after also did many
    off before must well back through years much where your way down should because long each just
    state those people how too little good world make very year still see own work men day get here
"""
VOCABULARY_TEXT = " ".join(_WORDS.split())
"""The source of the prompts' tokens: in every vocabulary, and none ends a text."""


@dataclass(frozen=True)
class Length:
    """A number of tokens, fixed or uniform: "128", or "64-256"."""

    low: int
    high: int

    @classmethod
    def parse(cls, name: str, text: str) -> Length:
        """Raises: ValueError naming the option."""
        low, dash, high = text.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ValueError(f"{name}: expected a number or LOW-HIGH, got {text!r}")
        found = cls(int(low), int(high if dash else low))
        check_integer(name, found.low, 1, MAX_LENGTH)
        check_integer(name, found.high, found.low, MAX_LENGTH)
        return found

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Call:
    """One request: its prompt, and how many tokens to generate."""

    prompt: list[int]
    max_tokens: int


def draw_calls(
    count: int,
    input_length: Length,
    output_length: Length,
    *,
    token_ids: Sequence[int],
    prefix: int = 0,
    seed: int = 0,
) -> list[Call]:
    """Prompts of random tokens among `token_ids`; the first `prefix` are common to all.

    The common part depends on the tokens only, so that it is the same in every run.
    """
    rng = random.Random(seed)
    known = sorted(set(token_ids))
    common = random.Random(0).choices(known, k=prefix)
    calls = []
    for _ in range(count):
        length = input_length.draw(rng)
        prompt = common[:length] + rng.choices(known, k=max(length - prefix, 0))
        calls.append(Call(prompt, output_length.draw(rng)))
    return calls


def arrivals(count: int, rate: float | None, seed: int = 0) -> list[float]:
    """Seconds at which calls arrive: a Poisson process of `rate` per second; None: all at once."""
    if rate is None:
        return [0.0] * count
    rng, at, times = random.Random(seed), 0.0, []
    for _ in range(count):
        times.append(at)
        at += rng.expovariate(rate)
    return times
