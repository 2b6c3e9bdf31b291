# SPDX-License-Identifier: Apache-2.0
"""How many candidates survive temperature, top-k, top-p and min-p, from the best ones alone.

The cuts keep the most probable tokens, so what they keep is a number. top-p needs the mass of all
tokens at the request's temperature T; of the tokens that are not listed only their mass r at T = 1
is known, and that none is more probable than p, the last one listed. The sum of p_i^(1/T) over them
is then greatest and least when r is spread evenly, and when it sits on r / p tokens of p each
(which is which depends on whether T is above 1). With T = 1 both are r: the number is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lampo.sampling_params import SamplingParams


def num_kept(
    logprobs: Sequence[float], params: SamplingParams, vocab_size: int
) -> tuple[int, int] | None:
    """The least and the greatest number of tokens that can be drawn; equal if it is certain.

    Args:
        logprobs: the largest natural log-probabilities at temperature 1, in descending order.
        params: resolved: no None among temperature, top_k, top_p, min_p.
        vocab_size: number of tokens in all.

    Returns:
        None if penalties or a bias change the distribution in ways that these numbers do not tell.
    """
    temperature, top_p = params.temperature or 0.0, params.top_p or 1.0
    if params.repetition_penalty not in (None, 1.0) or params.logit_bias or params.min_tokens:
        return None
    if params.presence_penalty or params.frequency_penalty:
        return None
    if temperature == 0.0:
        return 1, 1
    limit = params.top_k if params.top_k and 0 < params.top_k < vocab_size else vocab_size
    shown = list(logprobs[:limit])
    weights = [math.exp((value - shown[0]) / temperature) for value in shown]
    low = high = limit
    if top_p < 1.0:
        light, heavy = _tail_range(shown, weights[-1], limit, vocab_size, temperature)
        low = min(low, _top_p_count(weights, light, top_p) or len(weights) + 1)
        high = _top_p_count(weights, heavy, top_p) or high
    if params.min_p:
        survivors = sum(weight >= params.min_p for weight in weights)
        low = min(low, survivors)
        if survivors < len(weights):
            high = min(high, survivors)
    return low, high


def _tail_range(
    shown: list[float], last_weight: float, limit: int, vocab_size: int, temperature: float
) -> tuple[float, float]:
    """The weight of the tokens from len(shown) to limit, at least and at most."""
    rest = 1.0 - sum(map(math.exp, shown))
    if len(shown) >= limit or rest <= 0.0:
        return 0.0, 0.0
    on_few = rest / math.exp(shown[-1]) * last_weight
    unlisted = vocab_size - len(shown)
    even = unlisted * math.exp((math.log(rest / unlisted) - shown[0]) / temperature)
    return (min(on_few, even) if limit == vocab_size else 0.0), max(on_few, even)


def _top_p_count(weights: list[float], tail: float, top_p: float) -> int | None:
    """How many of the weights make up top_p of all mass; None if that takes more than these."""
    wanted = top_p * (sum(weights) + tail)
    mass = 0.0
    for count, weight in enumerate(weights, 1):
        mass += weight
        if mass >= wanted:
            return count
    return None
